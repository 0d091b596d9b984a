//! Sums, products and reductions.

use crate::tape::Edge;
use crate::{Error, Result, Tensor};
use ocelli_kernels::{Buffer, elementwise};

impl Tensor {
    /// `self + other`, both of one shape.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        if self.shape() != other.shape() {
            return Err(Error::shape("add", self.shape().to_string(), other.shape()));
        }
        let mut out = Buffer::uninit(self.elements());
        elementwise::add_scaled(self.values(), other.values(), 1.0, &mut out);
        let parents = [self.edge(), other.edge()];
        let [a, b] = parents.clone();
        let out = Tensor::new(out, self.shape().clone());
        Ok(out.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&a, || grad.detach());
            tape.add(&b, || grad);
        }))
    }

    /// Adds `table` to each of its repeats along the first axis: `[batch, tokens, width]` plus
    /// `[tokens, width]`.
    ///
    /// # Errors
    /// If the table's shape is not the end of this shape.
    pub fn add_table(&self, table: &Tensor) -> Result<Tensor> {
        let n = table.shape().len();
        if n == 0
            || n > self.shape().len()
            || self.shape()[self.shape().len() - n..] != table.shape()[..]
        {
            let want = format!("a table at the end of {}", self.shape());
            return Err(Error::shape("add_table", want, table.shape()));
        }
        let mut out = Buffer::uninit(self.elements());
        elementwise::add_repeated(self.values(), table.values(), &mut out);
        let parents = [self.edge(), table.edge()];
        let ([x, t], shape) = (parents.clone(), table.shape().clone());
        let out = Tensor::new(out, self.shape().clone());
        Ok(out.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&t, || {
                let mut d = Buffer::uninit(shape.elements());
                elementwise::sum_rows(grad.values(), shape.elements(), &mut d);
                Tensor::new(d, shape)
            });
            tape.add(&x, || grad);
        }))
    }

    /// `self * other`, both of one shape.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        if self.shape() != other.shape() {
            return Err(Error::shape("mul", self.shape().to_string(), other.shape()));
        }
        let product = |a: &Tensor, b: &Tensor| {
            let mut out = Buffer::uninit(a.elements());
            elementwise::multiply(a.values(), b.values(), 1.0, &mut out);
            Tensor::new(out, a.shape().clone())
        };
        let parents = [self.edge(), other.edge()];
        let ([ea, eb], a, b) = (parents.clone(), self.detach(), other.detach());
        Ok(product(&a, &b).tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&ea, || product(&grad, &b));
            tape.add(&eb, || product(&grad, &a));
        }))
    }

    /// Dropout: each value is 0 with probability `rate`, else divided by `1 - rate`, and `residual` is
    /// added. The mask is that of `key`, whatever else is computed.
    ///
    /// # Errors
    /// If the residual has another shape.
    pub fn dropout(&self, rate: f32, key: u64, residual: Option<&Tensor>) -> Result<Tensor> {
        if let Some(other) = residual.filter(|other| other.shape() != self.shape()) {
            return Err(Error::shape("dropout", self.shape().to_string(), other.shape()));
        }
        let dropped = move |x: &Tensor, residual: Option<&Tensor>| {
            let mut out = Buffer::uninit(x.elements());
            let residual = residual.map(Tensor::values);
            elementwise::dropout(x.values(), rate, key, residual, &mut out);
            Tensor::new(out, x.shape().clone())
        };
        let parents = [self.edge(), residual.map_or(Edge(None), Tensor::edge)];
        let [x, r] = parents.clone();
        let y = dropped(self, residual);
        Ok(y.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&x, || dropped(&grad, None));
            tape.add(&r, || grad);
        }))
    }

    /// Each row of the last axis times `gains[width]`: the layer scale of a residual branch (Touvron et al. 2021, arXiv:2103.17239, §2).
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn scale_columns(&self, gains: &Tensor) -> Result<Tensor> {
        let width = self.shape().last_axis();
        if gains.shape()[..] != [width] {
            return Err(Error::shape("scale_columns", format!("[{width}]"), gains.shape()));
        }
        let scaled = move |x: &Tensor, gains: &Tensor| {
            let mut out = Buffer::uninit(x.elements());
            for (x, out) in x.values().chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                for ((o, x), g) in out.iter_mut().zip(x).zip(gains.values()) {
                    *o = x * g;
                }
            }
            Tensor::new(out, x.shape().clone())
        };
        let parents = [self.edge(), gains.edge()];
        let ([ex, eg], x, gains) = (parents.clone(), self.detach(), gains.detach());
        Ok(scaled(&x, &gains).tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&eg, || {
                let mut product = Buffer::uninit(x.elements());
                elementwise::multiply(grad.values(), x.values(), 1.0, &mut product);
                let mut d = Buffer::uninit(width);
                elementwise::sum_rows(&product, width, &mut d);
                Tensor::new(d, [width])
            });
            tape.add(&ex, || scaled(&grad, &gains));
        }))
    }

    /// Each part of `self` times its own factor: `[batch, channels, img_h, img_w]` times
    /// `[batch, channels]`, filters `[out, ..]` times `[out]`, or all values times one of shape `[]`.
    ///
    /// # Errors
    /// If the factors' shape is not the beginning of this shape.
    pub fn scale_rows(&self, factors: &Tensor) -> Result<Tensor> {
        if !self.shape().starts_with(factors.shape()) {
            let want = format!("factors at the beginning of {}", self.shape());
            return Err(Error::shape("scale_rows", want, factors.shape()));
        }
        let scaled = move |x: &Tensor, factors: &Tensor| {
            let mut out = Buffer::uninit(x.elements());
            elementwise::scale_rows(x.values(), factors.values(), &mut out);
            Tensor::new(out, x.shape().clone())
        };
        let parents = [self.edge(), factors.edge()];
        let ([ex, ef], x, factors) = (parents.clone(), self.detach(), factors.detach());
        Ok(scaled(&x, &factors).tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&ef, || {
                let mut d = Buffer::uninit(factors.elements());
                elementwise::row_products(grad.values(), x.values(), &mut d);
                Tensor::new(d, factors.shape().clone())
            });
            tape.add(&ex, || scaled(&grad, &factors));
        }))
    }

    /// `self * factor`.
    ///
    /// # Errors
    /// Never; a result like the other operations.
    pub fn scale(&self, factor: f32) -> Result<Tensor> {
        let scaled = move |x: &Tensor| {
            let mut out = Buffer::from_slice(x.values());
            elementwise::scale_assign(&mut out, factor);
            Tensor::new(out, x.shape().clone())
        };
        let edge = self.edge();
        Ok(scaled(self).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || scaled(&grad));
        }))
    }

    /// `self / divisor`, a tensor of one value, such as a learned temperature.
    ///
    /// # Errors
    /// If the divisor has more than one value.
    pub fn divide_by(&self, divisor: &Tensor) -> Result<Tensor> {
        let by = divisor.item()?;
        let scaled = move |x: &Tensor| {
            let mut out = Buffer::from_slice(x.values());
            out.iter_mut().for_each(|v| *v /= by);
            Tensor::new(out, x.shape().clone())
        };
        let y = scaled(self);
        let parents = [self.edge(), divisor.edge()];
        let ([ex, ed], kept, shape) = (parents.clone(), y.clone(), divisor.shape().clone());
        Ok(y.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            tape.add(&ed, || {
                let rows = grad.values().iter().zip(kept.values());
                let sum: f64 = rows.map(|(g, y)| f64::from(*g) * f64::from(*y)).sum();
                Tensor::full((-sum / f64::from(by)) as f32, &shape)
            });
            tape.add(&ex, || scaled(&grad));
        }))
    }

    /// The sum of all values.
    ///
    /// # Errors
    /// Never; a result like the other operations.
    pub fn sum(&self) -> Result<Tensor> {
        let sum: f64 = self.values().iter().map(|v| f64::from(*v)).sum();
        let (edge, shape) = (self.edge(), self.shape().clone());
        Ok(Tensor::scalar(sum as f32).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || Tensor::full(grad.values()[0], &shape));
        }))
    }
}
