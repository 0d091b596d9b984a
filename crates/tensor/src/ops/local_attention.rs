//! Attention to the window around each position of a grid.

use crate::{Error, Result, Tensor};
use ocelli_kernels::Buffer;
use ocelli_kernels::local_attention::{Gradients, LocalAttention, Relative, backward, forward};

impl Tensor {
    /// Local self-attention (Ramachandran et al. 2019, arXiv:1906.05909) over a fused projection
    /// `[batch, grid_h * grid_w, 3 width]`, queries first, then keys, then values, each head by
    /// head; gives `[batch, grid_h * grid_w, width]`. The window has as many rows and columns (odd
    /// numbers) as the relative embeddings that are added to the keys: `rows`
    /// `[heads, window rows, head_dim / 2]` to the first half of a head, `cols`
    /// `[heads, window columns, head_dim / 2]` to the second. Scores are scaled by head_dim^-1/2.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn local_attention(
        &self,
        rows: &Tensor,
        cols: &Tensor,
        (grid_h, grid_w): (usize, usize),
    ) -> Result<Tensor> {
        const OP: &str = "local_attention";
        let &[batch, positions, fused] = &self.shape()[..] else {
            return Err(Error::shape(OP, "[batch, positions, 3 width]", self.shape()));
        };
        let &[heads, window_h, half] = &rows.shape()[..] else {
            return Err(Error::shape(OP, "[heads, window rows, head_dim / 2]", rows.shape()));
        };
        let window_w = cols.shape().get(1).copied().unwrap_or(0);
        if cols.shape()[..] != [heads, window_w, half] {
            return Err(Error::shape(OP, format!("[{heads}, columns, {half}]"), cols.shape()));
        }
        if window_h % 2 == 0 || window_w % 2 == 0 {
            let window = [window_h, window_w].into();
            return Err(Error::shape(OP, "a window of odd sides", &window));
        }
        let (width, want) = (2 * heads * half, grid_h * grid_w);
        if self.elements() == 0 || positions != want || fused != 3 * width {
            let want = format!("[batch, {want}, {}]", 3 * width);
            return Err(Error::shape(OP, want, self.shape()));
        }
        let sizes = LocalAttention {
            batch,
            heads,
            grid_h,
            grid_w,
            head_dim: 2 * half,
            window: (window_h, window_w),
            scale: 1.0 / (2.0 * half as f32).sqrt(),
        };
        let mut out = Buffer::uninit(sizes.output_len());
        let relative = Relative { rows: rows.values(), cols: cols.values() };
        forward(&sizes, self.values(), relative, &mut out);
        let edges = [self.edge(), rows.edge(), cols.edge()];
        let kept = [self, rows, cols].map(Tensor::detach);
        let parents = edges.clone();
        let out = Tensor::new(out, [batch, positions, width]);
        Ok(out.tracked(&parents.each_ref(), move |grad, tape| {
            let [qkv, rows, cols] = &kept;
            let mut d = kept.each_ref().map(|t| Buffer::uninit(t.elements()));
            let relative = Relative { rows: rows.values(), cols: cols.values() };
            let [d_qkv, d_rows, d_cols] = &mut d;
            let gradients = Gradients { qkv: d_qkv, rows: d_rows, cols: d_cols };
            backward(&sizes, qkv.values(), relative, grad.values(), gradients);
            for ((edge, d), t) in edges.iter().zip(d).zip(&kept) {
                tape.add(edge, || Tensor::new(d, t.shape().clone()));
            }
        }))
    }
}
