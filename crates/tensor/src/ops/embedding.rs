//! Tables and tokens.

use crate::{Error, Result, Tensor};
use ocelli_kernels::{Buffer, elementwise};
use std::sync::Arc;

impl Tensor {
    /// Rows of this table `[rows, width]` by index; `ids` of `shape` gives `[shape.., width]`.
    ///
    /// # Errors
    /// If an id is not below the number of rows, or `ids` does not fit `shape`.
    pub fn embedding(&self, ids: &Arc<[u32]>, shape: &[usize]) -> Result<Tensor> {
        let &[rows, width] = &self.shape()[..] else {
            return Err(Error::shape("embedding", "a table [rows, width]", self.shape()));
        };
        if shape.iter().product::<usize>() != ids.len() {
            let want = format!("a shape of {} ids", ids.len());
            return Err(Error::shape("embedding", want, &shape.into()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(Error::Index { op: "embedding", index: *id as usize, len: rows });
        }
        let mut out = Buffer::uninit(ids.len() * width);
        match self.blocks().filter(|b| b.shape() == [rows, width]) {
            Some(blocks) => {
                for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
                    blocks.row(*id as usize, out);
                }
            }
            None => elementwise::gather_rows(self.values(), width, ids, &mut out),
        }
        let mut axes = shape.to_vec();
        axes.push(width);
        let (edge, ids) = (self.edge(), Arc::clone(ids));
        Ok(Tensor::new(out, &axes[..]).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::zeroed(rows * width);
                elementwise::scatter_add_rows(&mut d, width, &ids, grad.values());
                Tensor::new(d, [rows, width])
            });
        }))
    }

    /// One token of each sample: `[batch, tokens, width]` to `[batch, width]`, the token of sample
    /// `i` being `at[i]`.
    ///
    /// # Errors
    /// If a position is not below the number of tokens.
    pub fn select_tokens(&self, at: &[usize]) -> Result<Tensor> {
        let &[batch, tokens, width] = &self.shape()[..] else {
            return Err(Error::shape("select_tokens", "[batch, tokens, width]", self.shape()));
        };
        if at.len() != batch {
            let want = format!("{batch} positions");
            return Err(Error::shape("select_tokens", want, &[at.len()].into()));
        }
        if let Some(index) = at.iter().find(|i| **i >= tokens) {
            return Err(Error::Index { op: "select_tokens", index: *index, len: tokens });
        }
        let ids: Arc<[u32]> =
            at.iter().enumerate().map(|(i, at)| (i * tokens + at) as u32).collect();
        self.reshape(&[batch * tokens, width])?.embedding(&ids, &[batch])
    }

    /// The mean over tokens `from..`: `[batch, tokens, width]` to `[batch, width]`.
    ///
    /// # Errors
    /// If there are no such tokens.
    pub fn mean_tokens(&self, from: usize) -> Result<Tensor> {
        let &[batch, tokens, width] = &self.shape()[..] else {
            return Err(Error::shape("mean_tokens", "[batch, tokens, width]", self.shape()));
        };
        if from >= tokens {
            return Err(Error::Index { op: "mean_tokens", index: from, len: tokens });
        }
        let share = 1.0 / (tokens - from) as f32;
        let mut out = Buffer::uninit(batch * width);
        for (x, out) in self.values().chunks_exact(tokens * width).zip(out.chunks_exact_mut(width))
        {
            elementwise::sum_rows(&x[from * width..], width, out);
            out.iter_mut().for_each(|v| *v *= share);
        }
        let edge = self.edge();
        Ok(Tensor::new(out, [batch, width]).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::zeroed(batch * tokens * width);
                for (d, g) in
                    d.chunks_exact_mut(tokens * width).zip(grad.values().chunks_exact(width))
                {
                    for row in d[from * width..].chunks_exact_mut(width) {
                        row.iter_mut().zip(g).for_each(|(d, g)| *d = g * share);
                    }
                }
                Tensor::new(d, [batch, tokens, width])
            });
        }))
    }

    /// Puts this token `[width]` (any shape of `width` values) in front of each sample of
    /// `x[batch, tokens, width]`.
    ///
    /// # Errors
    /// If the widths differ.
    pub fn prepend_to(&self, x: &Tensor) -> Result<Tensor> {
        let &[batch, tokens, width] = &x.shape()[..] else {
            return Err(Error::shape("prepend_to", "[batch, tokens, width]", x.shape()));
        };
        if self.elements() != width {
            return Err(Error::shape("prepend_to", format!("[{width}]"), self.shape()));
        }
        let mut out = Buffer::uninit(batch * (tokens + 1) * width);
        for (out, x) in
            out.chunks_exact_mut((tokens + 1) * width).zip(x.values().chunks_exact(tokens * width))
        {
            out[..width].copy_from_slice(self.values());
            out[width..].copy_from_slice(x);
        }
        let parents = [self.edge(), x.edge()];
        let ([token, rest], shape) = (parents.clone(), self.shape().clone());
        let out = Tensor::new(out, [batch, tokens + 1, width]);
        Ok(out.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            let rows = || grad.values().chunks_exact((tokens + 1) * width);
            tape.add(&token, || {
                let mut d = Buffer::zeroed(width);
                for g in rows() {
                    d.iter_mut().zip(&g[..width]).for_each(|(d, g)| *d += g);
                }
                Tensor::new(d, shape)
            });
            tape.add(&rest, || {
                let mut d = Buffer::uninit(batch * tokens * width);
                for (d, g) in d.chunks_exact_mut(tokens * width).zip(rows()) {
                    d.copy_from_slice(&g[width..]);
                }
                Tensor::new(d, [batch, tokens, width])
            });
        }))
    }

    /// Replaces the rows where `mask` is set by this token `[width]` in `x[.., width]`.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn replace_in(&self, x: &Tensor, mask: &Arc<[bool]>) -> Result<Tensor> {
        let width = x.shape().last_axis();
        if self.elements() != width || mask.len() != x.shape().rows() {
            let want = format!("a token [{width}] and a mask of {} rows", x.shape().rows());
            return Err(Error::shape("replace_in", want, self.shape()));
        }
        let mut out = Buffer::from_slice(x.values());
        for (row, _) in out.chunks_exact_mut(width).zip(&mask[..]).filter(|(_, m)| **m) {
            row.copy_from_slice(self.values());
        }
        let parents = [self.edge(), x.edge()];
        let ([token, rest], shape, mask) =
            (parents.clone(), self.shape().clone(), Arc::clone(mask));
        let out = Tensor::new(out, x.shape().clone());
        Ok(out.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&token, || {
                let mut d = Buffer::zeroed(width);
                for (g, _) in grad.values().chunks_exact(width).zip(&mask[..]).filter(|(_, m)| **m)
                {
                    d.iter_mut().zip(g).for_each(|(d, g)| *d += g);
                }
                Tensor::new(d, shape)
            });
            tape.add(&rest, || {
                let mut d = grad.detach();
                let rows = d.values_mut().chunks_exact_mut(width);
                rows.zip(&mask[..]).filter(|(_, m)| **m).for_each(|(row, _)| row.fill(0.0));
                d
            });
        }))
    }
}
