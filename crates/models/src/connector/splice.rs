//! Pictures among the words: rows of image tokens put into the embeddings of a text.

use crate::generate::{Decoder, Prompt};
use crate::{Error, Result};
use ocelli_tensor::{Targets, Tensor};

/// Stands for a picture in a row of ids.
pub const IMAGE: u32 = u32::MAX;

/// A text with its pictures, as a language model reads it.
#[derive(Clone, Debug)]
pub struct Spliced {
    /// `[tokens, width]`.
    pub embeddings: Tensor,
    /// The label of each token; those of a picture are [`Targets::IGNORED`].
    pub labels: Vec<u32>,
    /// The ids of the words alone.
    pub ids: Vec<u32>,
    /// Tokens that come from pictures.
    pub image_tokens: usize,
}

impl Spliced {
    /// Puts pictures `[image tokens, width]` where `ids` hold [`IMAGE`], first to first. `labels` go
    /// with the ids; without any, no token has a label.
    ///
    /// # Errors
    /// If there are more or fewer pictures than places, there is nothing at all, or an id is not in the
    /// vocabulary.
    pub fn new(
        decoder: &dyn Decoder,
        ids: &[u32],
        labels: Option<&[u32]>,
        images: &[Tensor],
    ) -> Result<Self> {
        let places = ids.iter().filter(|id| **id == IMAGE).count();
        if places != images.len() {
            return Err(Error::ImageCount { places, images: images.len() });
        }
        let mut parts = Vec::new();
        let (mut all, mut image_tokens) = (Vec::with_capacity(ids.len()), 0);
        let mut images = images.iter();
        let mut from = 0;
        for words in ids.split_inclusive(|id| *id == IMAGE) {
            let shows = words.last() == Some(&IMAGE);
            let words = &words[..words.len() - usize::from(shows)];
            if !words.is_empty() {
                parts.push(decoder.embed(words)?);
            }
            let to = from + words.len();
            match labels {
                Some(labels) => all.extend_from_slice(&labels[from..to]),
                None => all.resize(all.len() + words.len(), Targets::IGNORED),
            }
            from = to + usize::from(shows);
            if let Some(image) = images.next().filter(|_| shows) {
                let tokens = image.shape().rows();
                image_tokens += tokens;
                all.resize(all.len() + tokens, Targets::IGNORED);
                parts.push(image.clone());
            }
        }
        if parts.is_empty() {
            return Err(Error::EmptyPrompt { index: 0 });
        }
        let embeddings = Tensor::cat(&parts.iter().collect::<Vec<_>>(), 0)?;
        let ids = ids.iter().copied().filter(|id| *id != IMAGE).collect();
        Ok(Self { embeddings, labels: all, ids, image_tokens })
    }

    /// The same without what is behind `tokens` tokens.
    ///
    /// # Errors
    /// Never for a text that [`Spliced::new`] made.
    pub fn truncate(mut self, tokens: usize) -> Result<Self> {
        if tokens < self.labels.len() {
            self.embeddings = self.embeddings.narrow(0, 0, tokens)?;
            self.labels.truncate(tokens);
        }
        Ok(self)
    }
}

impl From<Spliced> for Prompt {
    fn from(s: Spliced) -> Self {
        let (embeddings, ids, image_tokens) = (s.embeddings, s.ids, s.image_tokens);
        Self { embeddings, ids, image_tokens, shown: Vec::new() }
    }
}
