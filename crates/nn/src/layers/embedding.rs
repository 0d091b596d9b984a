//! A table of vectors.

use crate::{Builder, Init, Parameter};
use ocelli_tensor::{Result, Tensor};
use std::sync::Arc;

/// Rows of a table by index.
#[derive(Debug)]
pub struct Embedding {
    weight: Parameter,
}

impl Embedding {
    /// `weight` `[rows, width]`.
    pub fn new(b: &Builder, rows: usize, width: usize, init: Init) -> Self {
        Self { weight: b.parameter("weight", &[rows, width], init) }
    }

    /// `ids` of `shape` to `[shape.., width]`.
    ///
    /// # Errors
    /// If an id is not below the number of rows.
    pub fn forward(&self, ids: &Arc<[u32]>, shape: &[usize]) -> Result<Tensor> {
        self.weight.tensor().embedding(ids, shape)
    }
}
