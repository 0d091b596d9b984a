//! How well texts describe pictures, the same for every system with a head for it.

use crate::Result;
use crate::language::bert::Texts;
use ocelli_tensor::Tensor;

/// How well each picture and each text belong together.
#[derive(Clone, Debug)]
pub struct Scores {
    /// Cosines of their features, each read alone, `[images, texts]`.
    pub cosines: Tensor,
    /// Probabilities of a match, by what reads both together, `[images, texts]`.
    pub probabilities: Tensor,
}

/// A system that reads pictures and texts together.
pub trait Matcher {
    /// Compares normalised `pixels` `[images, 3, img_h, img_w]` with texts between class token and
    /// separator.
    ///
    /// # Errors
    /// If the system has no heads for it, or a text is too long.
    fn scores(&self, pixels: &Tensor, texts: &Texts) -> Result<Scores>;
}
