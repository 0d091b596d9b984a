//! Self-attention within windows and along the axes of a grid.

use crate::layers::{Dropout, Linear};
use crate::{Builder, Init, Parameter};
use ocelli_tensor::{Activation, Result, Tensor};

/// Self-attention of each position of a grid to the window around it (Ramachandran et al. 2019,
/// arXiv:1906.05909), with learned relative embeddings.
#[derive(Debug)]
pub struct LocalAttention {
    qkv: Linear,
    out: Linear,
    relative_rows: Parameter,
    relative_cols: Parameter,
}

impl LocalAttention {
    /// `qkv` `[3 width, width]` and `out` `[width, width]` with biases, `relative_rows`
    /// `[heads, window rows, width / heads / 2]` and `relative_cols` likewise. The sides of `window`
    /// are odd.
    pub fn new(
        b: &Builder,
        width: usize,
        heads: usize,
        window: (usize, usize),
        init: Init,
    ) -> Self {
        let half = width / heads / 2;
        let relative = Init::Normal(1.0 / (2.0 * half as f32).sqrt());
        Self {
            qkv: Linear::new(&b.at("qkv"), width, 3 * width, true, init),
            out: Linear::new(&b.at("out"), width, width, true, init),
            relative_rows: b.parameter("relative_rows", &[heads, window.0, half], relative),
            relative_cols: b.parameter("relative_cols", &[heads, window.1, half], relative),
        }
    }

    /// Attention along the columns of a grid of `grid_h` rows: a window of one column that covers
    /// them whole.
    pub fn along_columns(
        b: &Builder,
        width: usize,
        heads: usize,
        grid_h: usize,
        init: Init,
    ) -> Self {
        Self::new(b, width, heads, (2 * grid_h - 1, 1), init)
    }

    /// Attention along the rows of a grid of `grid_w` columns.
    pub fn along_rows(b: &Builder, width: usize, heads: usize, grid_w: usize, init: Init) -> Self {
        Self::new(b, width, heads, (1, 2 * grid_w - 1), init)
    }

    /// `dropout(out(attention(x))) + residual`; `[batch, grid_h * grid_w, width]` in and out.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        residual: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [batch, positions, 3 width]
        let (rows, cols) = (self.relative_rows.tensor(), self.relative_cols.tensor());
        let mixed = qkv.local_attention(&rows, &cols, grid)?; // [batch, positions, width]
        self.out.forward_dropping(&mixed, Activation::None, residual, dropout)
    }
}
