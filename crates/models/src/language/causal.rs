//! What language models that write from left to right have in common.

use crate::Result;
use crate::generate::{BlockCache, Cache, Decoder, Rows};
use ocelli_tensor::{Targets, Tensor};
use std::sync::Arc;

/// A language model without an encoder.
pub trait CausalModel: Decoder {
    /// What the head reads, `[batch, tokens, ..]`, from embeddings `[batch, tokens, width]` of whole
    /// texts. `mask` `[batch, tokens]` is 0 for padding, which means nothing in the result; padding
    /// behind a text needs none.
    ///
    /// # Errors
    /// If shapes do not fit, or the texts are longer than the context.
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor>;

    /// Logits of the token behind each one, `[.., vocab]`, from [`CausalModel::features`].
    ///
    /// # Errors
    /// If shapes do not fit.
    fn logits(&self, features: &Tensor) -> Result<Tensor>;

    /// Whether a text of `tokens` may go on from what row 0 of a cache holds of it. If not, it is read
    /// anew, as what was read would be another thing in the longer text.
    fn goes_on(&self, _cache: &Cache, _tokens: usize) -> bool {
        true
    }

    /// A cache for `batch` texts.
    fn new_cache(&self, batch: usize) -> Cache;

    /// The token that stands where a picture is looked at; none for models that read pictures among
    /// their words, or none.
    fn place_token(&self) -> Option<u32> {
        None
    }

    /// The mean cross-entropy of each token's label at the token before it, from embeddings
    /// `[batch, tokens, width]` and labels `[batch, tokens]`; [`Targets::IGNORED`] takes no part.
    ///
    /// # Errors
    /// As for [`CausalModel::features`], or if a label is not in the vocabulary.
    fn loss(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        labels: &[u32],
    ) -> Result<Tensor> {
        next_token_loss(&self.logits(&self.features(embeddings, mask)?)?, labels)
    }
}

/// Gives tokens `[batch, tokens, width]` as the block of that index reads them, from what the block
/// before it made.
pub type Before<'a> = dyn Fn(usize, Tensor) -> Result<Tensor> + 'a;

/// The same for new tokens of a text, with what is kept of the block.
pub type StepBefore<'a> = dyn Fn(usize, Tensor, &BlockCache) -> Result<Tensor> + 'a;

/// A language model that takes layers of a system between its blocks.
pub trait Interleaved: CausalModel {
    /// Blocks.
    fn depth(&self) -> usize;

    /// Width of a token between the blocks.
    fn width(&self) -> usize;

    /// [`CausalModel::features`] with layers before the blocks.
    ///
    /// # Errors
    /// As there, or of a layer.
    fn features_between(
        &self,
        embeddings: &Tensor,
        mask: Option<&Arc<[u8]>>,
        before: &Before,
    ) -> Result<Tensor>;

    /// [`Decoder::advance`] with layers before the blocks.
    ///
    /// # Errors
    /// As there, or of a layer.
    fn advance_between(
        &self,
        rows: &Rows,
        cache: &mut Cache,
        before: &StepBefore,
    ) -> Result<Tensor>;
}

/// Mean cross-entropy of the logits `[batch, tokens, vocab]` of each token against the label of the
/// token behind it; `labels` is `[batch, tokens]`, and [`Targets::IGNORED`] takes no part.
///
/// # Errors
/// If shapes do not fit, or a label is not in the vocabulary.
pub fn next_token_loss(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let tokens = logits.shape().get(1).copied().unwrap_or(1);
    // The label of the token behind each one; the last of a row has none.
    let shifted = |row: &[u32]| {
        let behind = row[1..].iter().copied();
        behind.chain([Targets::IGNORED]).collect::<Vec<_>>()
    };
    let targets: Arc<[u32]> = labels.chunks(tokens.max(1)).flat_map(shifted).collect();
    Ok(logits.cross_entropy(&Targets::Classes(targets, 0.0))?)
}

/// Positions of the tokens of `[batch, tokens, ..]` whose rows all begin at 0.
pub(super) fn positions(x: &Tensor) -> Arc<[u32]> {
    let [batch, tokens] = [0, 1].map(|axis| x.shape().get(axis).copied().unwrap_or(1));
    (0..batch).flat_map(|_| 0..tokens as u32).collect()
}
