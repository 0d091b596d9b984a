//! How a forward pass in training differs from one in use.

use ocelli_nn::layers::{Dropout, NormStatistics};
use ocelli_tensor::{Result, Tensor, checkpoint};
use std::sync::Arc;

/// What a forward pass is for; by default for use, not for training.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass {
    /// What batch norms normalise by.
    pub statistics: NormStatistics,
    /// Whether each block of a transformer is computed a second time for its gradient, so that the
    /// tape keeps its input alone (Chen et al. 2016, arXiv:1604.06174). Gradients are the same bit
    /// for bit.
    pub checkpoints_blocks: bool,
    /// What is left out of the layers.
    pub dropout: Dropout,
}

impl Pass {
    /// `forward(block, x)`.
    pub(crate) fn through<B: Send + Sync + 'static>(
        self,
        block: &Arc<B>,
        x: &Tensor,
        forward: impl Fn(&B, &Tensor) -> Result<Tensor> + Send + 'static,
    ) -> Result<Tensor> {
        if !self.checkpoints_blocks {
            return forward(block, x);
        }
        let block = Arc::clone(block);
        checkpoint(x, move |x| forward(&block, x))
    }
}
