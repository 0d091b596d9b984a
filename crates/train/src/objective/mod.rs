//! Objectives: what a step minimises, one file each.
//!
//! An objective takes the samples of an optimiser step by their range, so that it can run them in
//! parts that fit the memory; the gradient is that of all of them at once.

mod contrastive;
mod mixup;
mod supervised;

pub use contrastive::{Tower, contrastive};
pub use mixup::mixup;
pub use supervised::supervised;

use ocelli_tensor::Gradients;
use std::ops::Range;

/// What a step found.
#[derive(Debug)]
pub struct Outcome {
    /// The mean loss over the samples.
    pub loss: f32,
    /// Its gradients.
    pub gradients: Gradients,
}

/// `0..samples` in parts of at most `micro`.
fn parts(samples: usize, micro: usize) -> impl Iterator<Item = Range<usize>> {
    (0..samples).step_by(micro.max(1)).map(move |start| start..samples.min(start + micro.max(1)))
}
