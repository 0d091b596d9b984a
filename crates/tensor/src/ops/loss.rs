//! Losses.

use crate::{Error, Result, Tensor};
use ocelli_kernels::gemm::{Epilogue, Lhs, Rhs, matmul};
use ocelli_kernels::{Buffer, cross_entropy, elementwise};
use std::sync::Arc;

/// What each row of logits should predict.
#[derive(Clone, Debug)]
pub enum Targets {
    /// A class per row, and the share of the weight that label smoothing spreads over all classes.
    Classes(Arc<[u32]>, f32),
    /// A distribution per row, `[rows, classes]`.
    Distributions(Tensor),
}

impl Targets {
    /// The class of a row that takes no part.
    pub const IGNORED: u32 = cross_entropy::Targets::IGNORED;

    fn of(&self) -> cross_entropy::Targets<'_> {
        match self {
            Self::Classes(c, smoothing) => cross_entropy::Targets::Classes(c, *smoothing),
            Self::Distributions(t) => cross_entropy::Targets::Distributions(t.values()),
        }
    }

    fn check(&self, rows: usize, classes: usize) -> Result<()> {
        match self {
            Self::Classes(c, _) => {
                if c.len() != rows {
                    let want = format!("{rows} classes");
                    return Err(Error::shape("cross_entropy", want, &[c.len()].into()));
                }
                match c.iter().find(|c| **c != Self::IGNORED && **c as usize >= classes) {
                    Some(c) => {
                        let index = *c as usize;
                        Err(Error::Index { op: "cross_entropy", index, len: classes })
                    }
                    None => Ok(()),
                }
            }
            Self::Distributions(t) if t.shape()[..] == [rows, classes] => Ok(()),
            Self::Distributions(t) => {
                let want = format!("targets [{rows}, {classes}]");
                Err(Error::shape("cross_entropy", want, t.shape()))
            }
        }
    }
}

impl Tensor {
    /// The mean softmax cross-entropy of logits `[.., classes]`.
    ///
    /// # Errors
    /// If the targets do not fit.
    pub fn cross_entropy(&self, targets: &Targets) -> Result<Tensor> {
        let (rows, classes) = (self.shape().rows(), self.shape().last_axis());
        targets.check(rows, classes)?;
        let mut sums = Buffer::uninit(rows);
        let loss = cross_entropy::forward(self.values(), classes, targets.of(), &mut sums);
        let (edge, x, targets) = (self.edge(), self.detach(), targets.clone());
        Ok(Tensor::scalar(loss).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::uninit(x.elements());
                let scale = grad.values()[0];
                cross_entropy::backward(x.values(), classes, targets.of(), &sums, scale, &mut d);
                Tensor::new(d, x.shape().clone())
            });
        }))
    }

    /// The contrastive loss of CLIP (Radford et al. 2021, arXiv:2103.00020, Figure 3): rows of
    /// `self` and `texts` `[n, width]` have length 1 and belong together by index; the cosines are
    /// multiplied by exp(`logit_scale`); the loss is the mean of the cross-entropies along both
    /// axes.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn contrastive_loss(&self, texts: &Tensor, logit_scale: &Tensor) -> Result<Tensor> {
        let &[n, width] = &self.shape()[..] else {
            return Err(Error::shape("contrastive_loss", "[n, width]", self.shape()));
        };
        if texts.shape() != self.shape() {
            return Err(Error::shape("contrastive_loss", self.shape().to_string(), texts.shape()));
        }
        let scale = logit_scale.item()?.exp();
        let mut cosines = Buffer::uninit(n * n);
        let (i, t) = (self.values(), texts.values());
        let epilogue = Epilogue::default;
        let rhs = Rhs::Transposed(t, width);
        matmul((n, n, width), Lhs::rows(i, width), rhs, &mut cosines, n, epilogue());
        let mut d = cosines.clone();
        elementwise::scale_assign(&mut d, scale);
        let loss = cross_entropy::contrastive(&mut d, n);
        let parents = [self.edge(), texts.edge(), logit_scale.edge()];
        let [i_edge, t_edge, s_edge] = parents.clone();
        let (images, texts) = (self.detach(), texts.detach());
        let scale_shape = logit_scale.shape().clone();
        Ok(Tensor::scalar(loss).tracked(
            &[&parents[0], &parents[1], &parents[2]],
            move |g, tape| {
                // `d` is the gradient of the logits.
                elementwise::scale_assign(&mut d, g.values()[0] * scale);
                tape.add(&s_edge, || {
                    let sum: f64 = d.iter().zip(&cosines[..]).map(|(d, c)| f64::from(d * c)).sum();
                    Tensor::full(sum as f32, &scale_shape)
                });
                tape.add(&i_edge, || {
                    let mut out = Buffer::uninit(n * width);
                    let rhs = Rhs::RowMajor(texts.values(), width);
                    matmul((n, width, n), Lhs::rows(&d, n), rhs, &mut out, width, epilogue());
                    Tensor::new(out, [n, width])
                });
                tape.add(&t_edge, || {
                    let mut out = Buffer::uninit(n * width);
                    let rhs = Rhs::RowMajor(images.values(), width);
                    matmul((n, width, n), Lhs::transposed(&d, n), rhs, &mut out, width, epilogue());
                    Tensor::new(out, [n, width])
                });
            },
        ))
    }

    /// `Σ |self - target| mask / (Σ mask + 1e-5)`, the reconstruction loss of masked-image models
    /// before its division by the channels. `target` and `mask` have the shape of `self`.
    ///
    /// # Errors
    /// If shapes differ.
    pub fn masked_l1_loss(&self, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
        for t in [target, mask] {
            if t.shape() != self.shape() {
                return Err(Error::shape("masked_l1_loss", self.shape().to_string(), t.shape()));
            }
        }
        let counted: f64 = mask.values().iter().map(|m| f64::from(*m)).sum();
        let weight = 1.0 / (counted + 1e-5);
        let rows = self.values().iter().zip(target.values()).zip(mask.values());
        let sum: f64 = rows.map(|((x, y), m)| f64::from((x - y).abs() * m)).sum();
        let (edge, x, y, m) = (self.edge(), self.detach(), target.detach(), mask.detach());
        let loss = Tensor::scalar((sum * weight) as f32);
        Ok(loss.tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let scale = grad.values()[0] * weight as f32;
                let mut d = Buffer::uninit(x.elements());
                let rows = x.values().iter().zip(y.values()).zip(m.values());
                for (d, ((x, y), m)) in d.iter_mut().zip(rows) {
                    let sign = f32::from(i8::from(x > y) - i8::from(x < y));
                    *d = sign * m * scale;
                }
                Tensor::new(d, x.shape().clone())
            });
        }))
    }
}
