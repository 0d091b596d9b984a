//! Objectives: what a step minimises, one file each.
//!
//! An objective takes the samples of an optimiser step in parts that fit the memory; the gradient is
//! that of all of them at once.

mod contrastive;
mod mixup;
mod supervised;

pub use contrastive::{Features, contrastive};
pub use mixup::mixup;
pub use supervised::supervised;

use ocelli_tensor::Gradients;

/// What a step found.
#[derive(Debug)]
pub struct Outcome {
    /// The mean loss over the samples.
    pub loss: f32,
    /// Its gradients.
    pub gradients: Gradients,
}
