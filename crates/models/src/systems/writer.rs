//! Writing about pictures, the same for every system that can.

use crate::Result;
use crate::generate::{Answer, Flow, Settings};
use ocelli_data::text::Tokenizer;
use ocelli_tensor::Tensor;

/// What is to be written about a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// What the picture shows, going on from these words; without any, as the system was trained to.
    Caption(Option<&'a str>),
    /// The answer to a question.
    Answer(&'a str),
}

/// A system that writes about pictures.
pub trait Writer {
    /// How it usually writes: its end tokens, and as many tokens as the request needs.
    fn usual(&self, request: &Request) -> Settings;

    /// Texts that end what it writes; they are not part of it.
    fn stops(&self) -> Vec<String> {
        Vec::new()
    }

    /// Ids of a text for each picture of normalised `pixels` `[batch, 3, img_h, img_w]`, without the
    /// words that a caption goes on from. `on_token` is told of each new token with the index of its
    /// picture, and may end the text there.
    ///
    /// # Errors
    /// If the system cannot do what is asked, or the text leaves no room for an answer.
    fn write(
        &self,
        pixels: &Tensor,
        request: &Request,
        tokenizer: &Tokenizer,
        settings: &Settings,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> Result<Vec<Answer>>;
}
