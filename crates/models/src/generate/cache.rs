//! What a decoder keeps of the tokens that it has read.

use crate::Result;
use ocelli_tensor::{KeyValues, Step, Tensor};
use std::sync::Arc;

/// Keys and values of one block.
#[derive(Clone, Debug)]
pub struct BlockCache {
    /// Of the tokens of the text itself.
    pub own: KeyValues,
    /// Of the memory that cross-attention reads, if the block has one.
    pub memory: Option<KeyValues>,
}

/// Keys and values of all blocks for the rows of a batch. Rows may differ in length; each begins at
/// position 0.
#[derive(Clone, Debug)]
pub struct Cache {
    blocks: Vec<BlockCache>,
    /// Tokens that each row had when a prompt of it was read, where the model keeps that.
    prompts: Vec<usize>,
    /// Of each row, the token from which on it looks at each picture of its memory; none for models
    /// that have no such places.
    places: Vec<Arc<[usize]>>,
}

impl Cache {
    /// From the caches of the blocks, first block first.
    pub fn new(blocks: Vec<BlockCache>) -> Self {
        let rows = blocks.first().map_or(0, |b| b.own.lens().len());
        Self { blocks, prompts: vec![0; rows], places: Vec::new() }
    }

    /// An empty cache of blocks without a memory, all alike.
    pub fn empty(batch: usize, depth: usize, kv_heads: usize, head_dim: usize) -> Self {
        let own = KeyValues::new(batch, kv_heads, head_dim);
        Self::new(vec![BlockCache { own, memory: None }; depth])
    }

    /// Tokens of each row.
    pub fn lens(&self) -> Vec<usize> {
        self.blocks.first().map(|b| b.own.lens()).unwrap_or_default()
    }

    /// Tokens that each row had when a prompt of it was last read, for models to which that makes a
    /// difference; 0 if none was.
    pub fn prompts(&self) -> &[usize] {
        &self.prompts
    }

    /// Says that row `row` had so many tokens when a prompt of it was read.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn set_prompt(&mut self, row: usize, tokens: usize) {
        self.prompts[row] = tokens;
    }

    /// The blocks, first block first.
    pub fn blocks_mut(&mut self) -> &mut [BlockCache] {
        &mut self.blocks
    }

    /// Says for each row from which token on it looks at each picture of its memory.
    pub fn set_places(&mut self, places: Vec<Vec<usize>>) {
        self.places = places.into_iter().map(Arc::from).collect();
    }

    /// The tokens from which on row `row` looks at its pictures.
    pub fn places(&self, row: usize) -> &[usize] {
        self.places.get(row).map_or(&[], |places| places)
    }

    /// Memory that a further token of a row takes, in bytes.
    pub fn token_bytes(&self) -> usize {
        self.blocks.iter().map(|b| b.own.token_bytes()).sum()
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let of = |b: &BlockCache| b.own.bytes() + b.memory.as_ref().map_or(0, KeyValues::bytes);
        self.blocks.iter().map(of).sum()
    }

    /// Row `row` alone; it is shared until one of the two is written.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> Self {
        let mut own = self.clone();
        own.select(&[row]);
        own
    }

    /// The rows of all parts, which are caches of one model.
    pub fn join(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_else(|| Self::new(Vec::new()));
        for part in parts {
            all.prompts.extend(part.prompts);
            all.places.extend(part.places);
            for (to, from) in all.blocks.iter_mut().zip(part.blocks) {
                to.own.append(from.own);
                if let (Some(to), Some(from)) = (&mut to.memory, from.memory) {
                    to.append(from);
                }
            }
        }
        all
    }

    /// Makes row `i` a copy of what row `order[i]` was; there may be more rows than before, or fewer.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&mut self, order: &[usize]) {
        self.prompts = order.iter().map(|i| self.prompts[*i]).collect();
        if !self.places.is_empty() {
            self.places = order.iter().map(|i| Arc::clone(&self.places[*i])).collect();
        }
        for block in &mut self.blocks {
            block.own.select(order);
            if let Some(memory) = &mut block.memory {
                memory.select(order);
            }
        }
    }

    /// Makes room for `more` tokens in each row.
    pub fn reserve(&mut self, more: usize) {
        self.blocks.iter_mut().for_each(|b| b.own.reserve(more));
    }

    /// Drops all tokens of row `row` from `len` on, as a chat does whose user changes what was said.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn truncate(&mut self, row: usize, len: usize) {
        self.blocks.iter_mut().for_each(|b| b.own.truncate(row, len));
    }
}

/// New tokens of a batch, as embeddings. Rows may differ in length; what is behind a row is padding.
#[derive(Clone, Debug)]
pub struct Rows {
    /// `[batch, tokens, width]`.
    pub embeddings: Tensor,
    /// Tokens of each row, at least one.
    pub lens: Vec<usize>,
}

impl Rows {
    /// Rows of different lengths, `[tokens, width]` each, padded with zeros.
    ///
    /// # Errors
    /// If there is no row, or widths differ.
    pub fn join(rows: &[Tensor]) -> Result<Self> {
        let lens: Vec<usize> = rows.iter().map(|r| r.shape().rows()).collect();
        let most = lens.iter().copied().max().unwrap_or(0);
        let mut padded = Vec::with_capacity(rows.len());
        for row in rows {
            let (len, width) = (row.shape().rows(), row.shape().last_axis());
            let row = row.reshape(&[len, width])?;
            let row = Tensor::cat(&[&row, &Tensor::zeros(&[most - len, width])], 0)?;
            padded.push(row.reshape(&[1, most, width])?);
        }
        let embeddings = Tensor::cat(&padded.iter().collect::<Vec<_>>(), 0)?;
        Ok(Self { embeddings, lens })
    }

    /// Position of every token, padding included, behind `past[i]` tokens of row `i`.
    pub fn positions(&self, past: &[usize]) -> Arc<[u32]> {
        let tokens = self.embeddings.shape()[1];
        past.iter().flat_map(|past| (0..tokens).map(move |t| (past + t) as u32)).collect()
    }

    /// How the tokens attend to those before them, scaled as usual.
    pub fn causal_step(&self) -> Step<'_> {
        Step { lens: &self.lens, is_causal: true, bias: None, scale: None }
    }

    /// How the tokens attend to a memory, scaled as usual.
    pub fn memory_step(&self) -> Step<'_> {
        Step { is_causal: false, ..self.causal_step() }
    }

    /// The last token of each row of `x` `[batch, tokens, width]`: `[batch, width]`.
    ///
    /// # Errors
    /// If `x` has other rows, or one is empty.
    pub fn last(&self, x: &Tensor) -> Result<Tensor> {
        let at: Vec<usize> = self.lens.iter().map(|n| n.wrapping_sub(1)).collect();
        Ok(x.select_tokens(&at)?)
    }
}
