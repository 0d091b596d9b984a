//! Layer normalisation, its kin without the mean, and rows of length 1.

use crate::{Error, Result, Tensor};
use ocelli_kernels::{Buffer, norm};

impl Tensor {
    /// Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).
    ///
    /// # Errors
    /// If weight or bias is not as long as the last axis.
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
        let width = self.shape().last_axis();
        for t in [weight, bias] {
            if t.shape()[..] != [width] {
                return Err(Error::shape("layer_norm", format!("[{width}]"), t.shape()));
            }
        }
        let parents = [self.edge(), weight.edge(), bias.edge()];
        let tracked = parents.iter().any(crate::tape::Edge::is_tracked);
        let mut out = Buffer::uninit(self.elements());
        let mut statistics = tracked.then(|| Buffer::uninit(2 * self.elements() / width.max(1)));
        norm::layer_norm_forward(
            self.values(),
            width,
            weight.values(),
            bias.values(),
            eps,
            &mut out,
            statistics.as_deref_mut(),
        );
        let out = Tensor::new(out, self.shape().clone());
        let Some(statistics) = statistics else { return Ok(out) };
        let [x_edge, w_edge, b_edge] = parents.clone();
        let (x, w) = (self.detach(), weight.detach());
        Ok(out.tracked(&[&parents[0], &parents[1], &parents[2]], move |grad, tape| {
            let mut dx = x_edge.is_tracked().then(|| Buffer::uninit(x.elements()));
            let (mut dw, mut db) = (Buffer::uninit(width), Buffer::uninit(width));
            norm::layer_norm_backward(
                x.values(),
                width,
                w.values(),
                &statistics,
                grad.values(),
                dx.as_deref_mut(),
                &mut dw,
                &mut db,
            );
            if let Some(dx) = dx {
                tape.add(&x_edge, || Tensor::new(dx, x.shape().clone()));
            }
            tape.add(&w_edge, || Tensor::new(dw, [width]));
            tape.add(&b_edge, || Tensor::new(db, [width]));
        }))
    }

    /// Each row of the last axis divided by its root mean square, times `weight` (Zhang and Sennrich
    /// 2019, arXiv:1910.07467).
    ///
    /// # Errors
    /// If the weight is not as long as the last axis.
    pub fn rms_norm(&self, weight: &Tensor, eps: f32) -> Result<Tensor> {
        let width = self.shape().last_axis();
        if weight.shape()[..] != [width] {
            return Err(Error::shape("rms_norm", format!("[{width}]"), weight.shape()));
        }
        let parents = [self.edge(), weight.edge()];
        let tracked = parents.iter().any(crate::tape::Edge::is_tracked);
        let mut out = Buffer::uninit(self.elements());
        let mut kept = tracked.then(|| Buffer::uninit(self.shape().rows()));
        let (x, w) = (self.values(), weight.values());
        norm::rms_norm_forward(x, width, w, eps, &mut out, kept.as_deref_mut());
        let out = Tensor::new(out, self.shape().clone());
        let Some(kept) = kept else { return Ok(out) };
        let [x_edge, w_edge] = parents.clone();
        let (x, w) = (self.detach(), weight.detach());
        Ok(out.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            let mut dx = x_edge.is_tracked().then(|| Buffer::uninit(x.elements()));
            let mut dw = Buffer::uninit(width);
            let (values, g) = (x.values(), grad.values());
            let to = dx.as_deref_mut();
            norm::rms_norm_backward(values, width, w.values(), &kept, g, to, &mut dw);
            if let Some(dx) = dx {
                tape.add(&x_edge, || Tensor::new(dx, x.shape().clone()));
            }
            tape.add(&w_edge, || Tensor::new(dw, [width]));
        }))
    }

    /// Each row of the last axis divided by its length; a row of zeros stays zero.
    ///
    /// # Errors
    /// If the tensor is a scalar.
    pub fn l2_normalise(&self) -> Result<Tensor> {
        if self.shape().is_empty() {
            return Err(Error::shape("l2_normalise", "[.., width]", self.shape()));
        }
        let width = self.shape().last_axis();
        let mut out = Buffer::uninit(self.elements());
        let mut norms = Buffer::uninit(self.shape().rows());
        norm::l2_forward(self.values(), width, &mut out, &mut norms);
        let y = Tensor::new(out, self.shape().clone());
        let (edge, kept) = (self.edge(), y.clone());
        Ok(y.tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut dx = Buffer::uninit(kept.elements());
                norm::l2_backward(kept.values(), width, &norms, grad.values(), &mut dx);
                Tensor::new(dx, kept.shape().clone())
            });
        }))
    }
}
