//! Texts of different lengths with their pictures, side by side.

use crate::Result;
use crate::connector::splice::Spliced;
use crate::generate::Rows;
use crate::language::causal::{CausalModel, next_token_loss};
use ocelli_tensor::{Targets, Tensor};
use std::sync::Arc;

/// Texts of a batch as the language model reads them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, tokens, width]`; zeros or the embedding of the padding token behind each text.
    pub embeddings: Tensor,
    /// `[batch, tokens]`, 0 behind each text.
    pub mask: Arc<[u8]>,
    /// `[batch, tokens]`.
    pub labels: Vec<u32>,
}

impl Batch {
    /// Pads texts with their pictures to a batch of `tokens`, or of the longest text if that is more, with
    /// the token `pad` or with zeros.
    ///
    /// # Errors
    /// If there is no text, or `pad` is not in the vocabulary.
    pub fn new(
        language: &dyn CausalModel,
        texts: &[Spliced],
        tokens: usize,
        pad: Option<u32>,
    ) -> Result<Self> {
        let longest = texts.iter().map(|t| t.labels.len()).max().unwrap_or(0).max(tokens);
        let (mut rows, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let (len, padding) = (text.labels.len(), longest - text.labels.len());
            let behind = match pad {
                Some(pad) => language.embed(&vec![pad; padding])?,
                None => Tensor::zeros(&[padding, text.embeddings.shape().last_axis()]),
            };
            rows.push(Tensor::cat(&[&text.embeddings, &behind], 0)?);
            mask.extend(std::iter::repeat_n(1, len).chain(std::iter::repeat_n(0, padding)));
            labels.extend_from_slice(&text.labels);
            labels.extend(std::iter::repeat_n(Targets::IGNORED, padding));
        }
        let embeddings = Rows::join(&rows)?.embeddings;
        Ok(Self { embeddings, mask: mask.into(), labels })
    }

    /// Logits of the token behind each one, `[batch, tokens, vocab]`.
    ///
    /// # Errors
    /// If the texts are longer than the context.
    pub fn logits(&self, language: &dyn CausalModel) -> Result<Tensor> {
        language.logits(&language.features(&self.embeddings, Some(&self.mask))?)
    }

    /// The mean cross-entropy of the labels.
    ///
    /// # Errors
    /// As for [`Batch::logits`].
    pub fn loss(&self, language: &dyn CausalModel) -> Result<Tensor> {
        next_token_loss(&self.logits(language)?, &self.labels)
    }
}
