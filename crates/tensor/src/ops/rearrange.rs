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
