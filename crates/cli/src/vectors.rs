//! What models turn pictures and texts into.

use crate::failure::Failure;
use ocelli_models::{Error, Model};
use ocelli_tensor::Tensor;

/// One vector of length 1 per picture, `[batch, width]`, for normalised pixels.
pub(crate) fn of_pictures(model: &Model, pixels: &Tensor) -> Result<Tensor, Failure> {
    let Some(encode) = model.picture_encoder() else {
        let (what, needs, is) = ("seeing", "a ViT or a CLIP", model.kind().to_owned());
        return Err(Error::Unsuitable { what, needs, is }.into());
    };
    finite(encode(pixels)?.l2_normalise()?, "the embeddings of pictures")
}

/// The values, unless one is infinite or not a number: finite inputs give such only by weights that are
/// broken or too large.
pub(crate) fn finite(values: Tensor, what: &str) -> Result<Tensor, Failure> {
    if values.is_finite() {
        return Ok(values);
    }
    Err(Failure::model(format!(
        "{what} are not finite, so the weights are broken or too large; fetch the model again, or take \
         an earlier checkpoint"
    )))
}
