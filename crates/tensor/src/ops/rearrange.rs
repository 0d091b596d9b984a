//! Other orders of the same values.

use crate::{Error, Result, Tensor};
use ocelli_kernels::Buffer;

impl Tensor {
    /// Axes in another order: axis `i` of the result is axis `order[i]` of this tensor.
    ///
    /// # Errors
    /// If `order` does not name every axis once.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let axes = self.shape().len();
        let mut inverse = vec![usize::MAX; axes];
        for (i, o) in order.iter().enumerate() {
            if *o < axes {
                inverse[*o] = i;
            }
        }
        if order.len() != axes || inverse.contains(&usize::MAX) {
            let want = format!("an order of {axes} axes, got {order:?}");
            return Err(Error::shape("permute", want, self.shape()));
        }
        let edge = self.edge();
        Ok(permuted(self, order).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || permuted(&grad, &inverse));
        }))
    }

    /// Cuts pictures into square patches: `[batch, channels, img_h, img_w]` to
    /// `[batch, patches, channels * side * side]`, patches in reading order; a rest of less than a
    /// patch at the right and the bottom is left out. With a linear layer behind it this is the
    /// convolution whose kernel and stride are `side`.
    ///
    /// # Errors
    /// If the picture is smaller than a patch.
    pub fn patches(&self, side: usize) -> Result<Tensor> {
        let &[batch, channels, img_h, img_w] = &self.shape()[..] else {
            let want = "[batch, channels, img_h, img_w]";
            return Err(Error::shape("patches", want, self.shape()));
        };
        let (grid_h, grid_w) = (img_h / side.max(1), img_w / side.max(1));
        if side == 0 || grid_h * grid_w == 0 {
            let want = format!("a picture of at least {side} x {side}");
            return Err(Error::shape("patches", want, self.shape()));
        }
        let width = channels * side * side;
        let shape = [batch, grid_h * grid_w, width];
        // Calls `f(place in the picture, place in the patches)` for each run of `side` values.
        let runs = move |f: &mut dyn FnMut(usize, usize)| {
            for patch in 0..batch * grid_h * grid_w {
                let (sample, at) = (patch / (grid_h * grid_w), patch % (grid_h * grid_w));
                let (top, left) = (at / grid_w * side, at % grid_w * side);
                for row in 0..channels * side {
                    let (channel, y) = (row / side, row % side);
                    let line = (sample * channels + channel) * img_h + top + y;
                    f(line * img_w + left, patch * width + row * side);
                }
            }
        };
        let mut out = Buffer::uninit(shape.iter().product());
        let x = self.values();
        runs(&mut |from, to| out[to..to + side].copy_from_slice(&x[from..from + side]));
        let (edge, from_shape) = (self.edge(), self.shape().clone());
        Ok(Tensor::new(out, shape).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::zeroed(from_shape.elements());
                let g = grad.values();
                runs(&mut |from, to| d[from..from + side].copy_from_slice(&g[to..to + side]));
                Tensor::new(d, from_shape)
            });
        }))
    }

    /// Joins tensors along `axis`; their other axes are equal.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn cat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
        let Some(first) = parts.first() else {
            return Err(Error::shape("cat", "at least one tensor", &[].into()));
        };
        let mut shape = first.shape().to_vec();
        if axis >= shape.len() {
            return Err(Error::Index { op: "cat", index: axis, len: shape.len() });
        }
        shape[axis] = 0;
        for p in parts {
            let mut other = p.shape().to_vec();
            let len = other.get(axis).copied().unwrap_or(0);
            if axis < other.len() {
                other[axis] = shape[axis];
            }
            if other != shape {
                return Err(Error::shape("cat", first.shape().to_string(), p.shape()));
            }
            shape[axis] += len;
        }
        let outer: usize = shape[..axis].iter().product();
        let row: usize = shape[axis..].iter().product();
        let mut out = Buffer::uninit(outer * row);
        let mut at = 0;
        let mut spans = Vec::new();
        for p in parts {
            let len: usize = p.shape()[axis..].iter().product();
            for o in 0..outer {
                out[o * row + at..][..len].copy_from_slice(&p.values()[o * len..][..len]);
            }
            spans.push((p.edge(), p.shape().clone(), at, len));
            at += len;
        }
        let edges: Vec<_> = spans.iter().map(|s| s.0.clone()).collect();
        let out = Tensor::new(out, &shape[..]);
        Ok(out.tracked(&edges.iter().collect::<Vec<_>>(), move |grad, tape| {
            for (edge, shape, at, len) in spans {
                tape.add(&edge, || {
                    let mut d = Buffer::uninit(outer * len);
                    for o in 0..outer {
                        d[o * len..][..len].copy_from_slice(&grad.values()[o * row + at..][..len]);
                    }
                    Tensor::new(d, shape)
                });
            }
        }))
    }

    /// `len` entries of `axis` from `start`.
    ///
    /// # Errors
    /// If they do not lie on the axis.
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        let shape = self.shape();
        if axis >= shape.len() || start + len > shape[axis] {
            let have = shape.get(axis).copied().unwrap_or(0);
            return Err(Error::Index { op: "narrow", index: start + len, len: have });
        }
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        let (row, part, at) = (shape[axis] * inner, len * inner, start * inner);
        let mut out = Buffer::uninit(outer * part);
        for o in 0..outer {
            out[o * part..][..part].copy_from_slice(&self.values()[o * row + at..][..part]);
        }
        let mut narrowed = shape.to_vec();
        narrowed[axis] = len;
        let (edge, shape) = (self.edge(), shape.clone());
        Ok(Tensor::new(out, &narrowed[..]).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::zeroed(shape.elements());
                for o in 0..outer {
                    d[o * row + at..][..part].copy_from_slice(&grad.values()[o * part..][..part]);
                }
                Tensor::new(d, shape)
            });
        }))
    }
}

fn permuted(x: &Tensor, order: &[usize]) -> Tensor {
    let shape = x.shape();
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let out_shape: Vec<usize> = order.iter().map(|o| shape[*o]).collect();
    let steps: Vec<usize> = order.iter().map(|o| strides[*o]).collect();
    let mut out = Buffer::uninit(x.elements());
    let values = x.values();
    let mut index = vec![0; order.len()];
    let mut at = 0;
    for o in out.iter_mut() {
        *o = values[at];
        // Counts up like an odometer.
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < out_shape[axis] {
                break;
            }
            at -= steps[axis] * out_shape[axis];
            index[axis] = 0;
        }
    }
    Tensor::new(out, &out_shape[..])
}
