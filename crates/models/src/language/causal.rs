//! What language models that write from left to right have in common.

use crate::Result;
use ocelli_tensor::{Targets, Tensor};
use std::sync::Arc;

/// Mean cross-entropy of the logits `[batch, tokens, vocab]` of each token against the label of the
/// token behind it; `labels` is `[batch, tokens]`, and [`Targets::IGNORED`] takes no part.
///
/// # Errors
/// If shapes do not fit, or a label is not in the vocabulary.
pub fn next_token_loss(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let tokens = logits.shape().get(1).copied().unwrap_or(1);
    Ok(logits.cross_entropy(&Targets::Classes(shifted(labels, tokens), 0.0))?)
}

/// The label of the token behind each one; the last of a row has none.
fn shifted(labels: &[u32], tokens: usize) -> Arc<[u32]> {
    let row = |row: &[u32]| {
        let behind = row[1..].iter().copied();
        behind.chain([Targets::IGNORED]).collect::<Vec<_>>()
    };
    labels.chunks(tokens.max(1)).flat_map(row).collect()
}

/// Positions of the tokens of `[batch, tokens, ..]` whose rows all begin at 0.
pub(super) fn positions(x: &Tensor) -> Arc<[u32]> {
    let [batch, tokens] = [0, 1].map(|axis| x.shape().get(axis).copied().unwrap_or(1));
    (0..batch).flat_map(|_| 0..tokens as u32).collect()
}
