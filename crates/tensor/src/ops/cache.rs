//! Keys and values that are kept from step to step.

use crate::ops::attention::bias_of;
use crate::{Error, Heads, Result, Tensor};
use ocelli_kernels::Buffer;
use ocelli_kernels::attention::{CacheRow, Window, cached};
use std::sync::Arc;

/// Keys and values of one attention for the rows of a batch. Rows may differ in length; a row that
/// is shared is copied only when it is written.
#[derive(Clone, Debug)]
pub struct KeyValues {
    rows: Vec<Arc<CacheRow>>,
    kv_heads: usize,
    head_dim: usize,
}

/// How new tokens attend to a cache.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// New tokens of each row; tokens behind them are padding.
    pub lens: &'a [usize],
    /// Whether a token sees its row up to itself; else it sees all of the row.
    pub is_causal: bool,
    /// Added to the scaled scores, `[batch or 1, heads or 1, tokens, keys]`, where `keys` is the
    /// length of the longest row at least.
    pub bias: Option<&'a Tensor>,
    /// Multiplies the scores; head_dim^-1/2 if `None`.
    pub scale: Option<f32>,
}

impl KeyValues {
    /// `batch` empty rows.
    pub fn new(batch: usize, kv_heads: usize, head_dim: usize) -> Self {
        let row = Arc::new(CacheRow::new(kv_heads, head_dim));
        Self { rows: vec![row; batch], kv_heads, head_dim }
    }

    /// Tokens of each row.
    pub fn lens(&self) -> Vec<usize> {
        self.rows.iter().map(|r| r.len()).collect()
    }

    /// Memory that a token of a row takes, in bytes.
    pub fn token_bytes(&self) -> usize {
        CacheRow::new(self.kv_heads, self.head_dim).token_bytes()
    }

    /// Memory that the rows take, in bytes; shared ones count each time.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(|r| r.bytes()).sum()
    }

    /// Makes row `i` a copy of what row `order[i]` was; there may be more rows than before, or fewer.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&mut self, order: &[usize]) {
        self.rows = order.iter().map(|i| Arc::clone(&self.rows[*i])).collect();
    }

    /// Adds the rows of another cache of the same sizes behind these.
    ///
    /// # Panics
    /// If heads or their sizes differ.
    pub fn append(&mut self, other: Self) {
        assert_eq!((self.kv_heads, self.head_dim), (other.kv_heads, other.head_dim), "heads");
        self.rows.extend(other.rows);
    }

    /// Drops all tokens of row `row` from `len` on.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn truncate(&mut self, row: usize, len: usize) {
        Arc::make_mut(&mut self.rows[row]).truncate(len);
    }

    /// Makes room for `more` tokens in each row, so that later ones need no copy.
    pub fn reserve(&mut self, more: usize) {
        for row in &mut self.rows {
            let len = row.len();
            Arc::make_mut(row).reserve(len + more);
        }
    }

    /// Adds the first `lens[i]` tokens of sample `i` to row `i`; `keys` and `values` are
    /// `[batch, tokens, kv_heads head_dim]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn push(&mut self, keys: &Tensor, values: &Tensor, lens: &[usize]) -> Result<()> {
        let want = [self.rows.len(), keys.shape().get(1).copied().unwrap_or(0)];
        let want = [want[0], want[1], self.kv_heads * self.head_dim];
        for t in [keys, values] {
            if t.shape()[..] != want {
                return Err(Error::shape("push", format!("{want:?}"), t.shape()));
            }
        }
        self.check_lens(lens, want[1])?;
        let [_, tokens, width] = want;
        for (i, (row, len)) in self.rows.iter_mut().zip(lens).enumerate() {
            let at = i * tokens * width..(i + 1) * tokens * width;
            let (k, v) = (&keys.values()[at.clone()], &values.values()[at]);
            Arc::make_mut(row).push(k, v, *len, width);
        }
        Ok(())
    }

    fn check_lens(&self, lens: &[usize], tokens: usize) -> Result<()> {
        if lens.len() != self.rows.len() {
            let want = format!("the lengths of {} rows", self.rows.len());
            return Err(Error::shape("cache", want, &[lens.len()].into()));
        }
        match lens.iter().find(|n| **n > tokens) {
            Some(n) => Err(Error::Index { op: "cache", index: *n, len: tokens }),
            None => Ok(()),
        }
    }

    /// Attention of queries `[batch, tokens, heads head_dim]` to their rows, which hold the keys of
    /// the same tokens already if the step is causal. Not tracked; padding gives zeros.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn attend(&self, queries: &Tensor, heads: Heads, step: &Step) -> Result<Tensor> {
        let &[batch, tokens, width] = &queries.shape()[..] else {
            let want = "[batch, tokens, heads head_dim]";
            return Err(Error::shape("attend", want, queries.shape()));
        };
        let fits = batch == self.rows.len() && width == heads.heads * self.head_dim;
        if !fits || heads.kv_heads != self.kv_heads || !heads.heads.is_multiple_of(self.kv_heads) {
            let want = format!("[{}, tokens, {} x heads]", self.rows.len(), self.head_dim);
            return Err(Error::shape("attend", want, queries.shape()));
        }
        self.check_lens(step.lens, tokens)?;
        let most = self.rows.iter().map(|r| r.len()).max().unwrap_or(0);
        let bias_keys = step.bias.map_or(0, |b| b.shape().last_axis());
        if bias_keys < most && step.bias.is_some() {
            return Err(Error::Index { op: "bias of a cache", index: most, len: bias_keys });
        }
        let bias = match step.bias {
            Some(b) => Some(bias_of(b, [batch, heads.heads, tokens, bias_keys])?),
            None => None,
        };
        let window = Window { is_causal: step.is_causal, queries: step.lens, bias, bias_keys };
        for (row, n) in self.rows.iter().zip(step.lens) {
            if step.is_causal && *n > row.len() {
                return Err(Error::Index { op: "attend", index: *n, len: row.len() });
            }
        }
        let scale = step.scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt());
        let rows: Vec<&CacheRow> = self.rows.iter().map(|r| &**r).collect();
        let mut out = Buffer::zeroed(queries.elements());
        cached(&rows, (heads.heads, tokens), queries.values(), scale, window, &mut out);
        Ok(Tensor::new(out, queries.shape().clone()))
    }
}
