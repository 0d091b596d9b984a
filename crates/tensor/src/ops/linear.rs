//! Linear layers with everything that can ride on them.

use crate::{Error, Result, Shape, Tensor};
use ocelli_kernels::activation::{self, Activation};
use ocelli_kernels::gemm::{Epilogue, Lhs, PackedRhs, Rhs, matmul};
use ocelli_kernels::narrow::{Narrow, PackedNarrow, matmul_bf16};
use ocelli_kernels::quant::PackedBlocks;
use ocelli_kernels::{Buffer, elementwise};
use std::sync::Arc;

/// A weight in the form that the kernels read fastest; made once, shared freely.
#[derive(Clone, Debug)]
pub struct PackedWeight(Arc<Panels>);

#[derive(Debug)]
enum Panels {
    Values(PackedRhs),
    Blocks(PackedBlocks),
    Narrow(PackedNarrow),
}

impl PackedWeight {
    /// Packs a weight `[outputs, inputs]`; one in blocks stays so, another becomes `narrow` if that is
    /// given.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub fn new(weight: &Tensor, narrow: Option<Narrow>) -> Result<Self> {
        let &[outputs, inputs] = &weight.shape()[..] else {
            return Err(Error::shape("pack", "[outputs, inputs]", weight.shape()));
        };
        if let Some(blocks) = weight.blocks().filter(|b| b.shape() == [outputs, inputs]) {
            return Ok(Self(Arc::new(Panels::Blocks(PackedBlocks::new(blocks)))));
        }
        if let Some(kind) = narrow {
            let packed = PackedNarrow::new(kind, (outputs, inputs), weight.values());
            return Ok(Self(Arc::new(Panels::Narrow(packed))));
        }
        let rhs = Rhs::Transposed(weight.values(), inputs);
        Ok(Self(Arc::new(Panels::Values(PackedRhs::new(inputs, outputs, rhs)))))
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        match &*self.0 {
            Panels::Values(panels) => [panels.n(), panels.k()],
            Panels::Blocks(panels) => [panels.n(), panels.k()],
            Panels::Narrow(panels) => [panels.n(), panels.k()],
        }
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        match &*self.0 {
            Panels::Values(panels) => panels.bytes(),
            Panels::Blocks(panels) => panels.bytes(),
            Panels::Narrow(panels) => panels.bytes(),
        }
    }

    fn rhs(&self) -> Rhs<'_> {
        match &*self.0 {
            Panels::Values(panels) => Rhs::Packed(panels),
            Panels::Blocks(panels) => Rhs::Blocks(panels),
            Panels::Narrow(panels) => Rhs::Narrow(panels),
        }
    }
}

/// What rides on a linear layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinearOptions<'a> {
    /// `[outputs]`, added to the product.
    pub bias: Option<&'a Tensor>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added after the activation; shape of the output.
    pub residual: Option<&'a Tensor>,
    /// Whether the operands of [`Tensor::linear_with`] and of its gradients are rounded to bf16
    /// (Kalamkar et al. 2019, arXiv:1905.12322); all else, and all that is kept, is f32.
    pub in_bf16: bool,
}

impl Tensor {
    /// `x Wᵀ + bias` for a weight `[outputs, inputs]`; `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.linear_with(weight, LinearOptions { bias, ..LinearOptions::default() })
    }

    /// `activation(x Wᵀ + bias) + residual`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn linear_with(&self, weight: &Tensor, options: LinearOptions) -> Result<Tensor> {
        let &[outputs, inputs] = &weight.shape()[..] else {
            return Err(Error::shape("linear", "a weight [outputs, inputs]", weight.shape()));
        };
        let rhs = Rhs::Transposed(weight.values(), inputs);
        let (out, pre) = self.apply_linear(outputs, inputs, rhs, weight.is_tracked(), options)?;
        let bias = options.bias.map(Tensor::edge);
        let residual = options.residual.map(Tensor::edge);
        let (x_edge, w_edge) = (self.edge(), weight.edge());
        let mut parents = vec![&x_edge, &w_edge];
        parents.extend(bias.iter().chain(&residual));
        if !parents.iter().any(|p| p.is_tracked()) {
            return Ok(out);
        }
        // The input is kept for the gradient of the weight, the weight for that of the input.
        let kept_x = w_edge.is_tracked().then(|| self.detach());
        let kept_w = x_edge.is_tracked().then(|| weight.detach());
        let product = if options.in_bf16 { matmul_bf16 } else { matmul };
        let x_shape = self.shape().clone();
        let activation = options.activation;
        let all: Vec<_> = parents.into_iter().cloned().collect();
        Ok(out.tracked(&all.iter().collect::<Vec<_>>(), move |grad, tape| {
            if let Some(residual) = &residual {
                tape.add(residual, || grad.detach());
            }
            let rows = x_shape.rows();
            let dz = match pre {
                Some(z) => {
                    let mut dz = Buffer::uninit(z.len());
                    activation::backward(activation, &z, grad.values(), &mut dz);
                    Tensor::new(dz, grad.shape().clone())
                }
                None => grad,
            };
            if let Some(bias) = &bias {
                tape.add(bias, || {
                    let mut sum = Buffer::uninit(outputs);
                    elementwise::sum_rows(dz.values(), outputs, &mut sum);
                    Tensor::new(sum, [outputs])
                });
            }
            if let Some(x) = kept_x {
                tape.add(&w_edge, || {
                    // [outputs, rows] [rows, inputs]
                    let mut dw = Buffer::uninit(outputs * inputs);
                    product(
                        (outputs, inputs, rows),
                        Lhs::transposed(dz.values(), outputs),
                        Rhs::RowMajor(x.values(), inputs),
                        &mut dw,
                        inputs,
                        Epilogue::default(),
                    );
                    Tensor::new(dw, [outputs, inputs])
                });
            }
            if let Some(w) = kept_w {
                tape.add(&x_edge, || {
                    // [rows, outputs] [outputs, inputs]
                    let mut dx = Buffer::uninit(rows * inputs);
                    product(
                        (rows, inputs, outputs),
                        Lhs::rows(dz.values(), outputs),
                        Rhs::RowMajor(w.values(), inputs),
                        &mut dx,
                        inputs,
                        Epilogue::default(),
                    );
                    Tensor::new(dx, x_shape)
                });
            }
        }))
    }

    /// [`Tensor::linear_with`] over a packed weight, for inference: the result is not tracked.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn linear_packed(&self, weight: &PackedWeight, options: LinearOptions) -> Result<Tensor> {
        let [outputs, inputs] = weight.shape();
        self.apply_linear(outputs, inputs, weight.rhs(), false, options).map(|(out, _)| out)
    }

    /// The output, and the values before the activation where a gradient will need them.
    fn apply_linear(
        &self,
        outputs: usize,
        inputs: usize,
        rhs: Rhs,
        weight_tracked: bool,
        options: LinearOptions,
    ) -> Result<(Tensor, Option<Buffer<f32>>)> {
        if self.shape().is_empty() || self.shape().last_axis() != inputs {
            return Err(Error::shape("linear", format!("[.., {inputs}]"), self.shape()));
        }
        let shape = self.shape().with_last(outputs);
        if let Some(b) = options.bias.filter(|b| b.shape()[..] != [outputs]) {
            return Err(Error::shape("linear", format!("a bias [{outputs}]"), b.shape()));
        }
        if let Some(r) = options.residual.filter(|r| *r.shape() != shape) {
            return Err(Error::shape("linear", format!("a residual {shape}"), r.shape()));
        }
        let tracked =
            self.is_tracked() || weight_tracked || options.bias.is_some_and(Tensor::is_tracked);
        let n = shape.elements();
        let mut pre =
            (tracked && options.activation != Activation::None).then(|| Buffer::uninit(n));
        let mut out = Buffer::uninit(n);
        let is_packed = !matches!(rhs, Rhs::Transposed(..));
        let product = if options.in_bf16 && !is_packed { matmul_bf16 } else { matmul };
        product(
            (self.shape().rows(), outputs, inputs),
            Lhs::rows(self.values(), inputs),
            rhs,
            &mut out,
            outputs,
            Epilogue {
                bias: options.bias.map(Tensor::values),
                activation: options.activation,
                residual: options.residual.map(Tensor::values),
                pre_activation: pre.as_deref_mut(),
                ..Epilogue::default()
            },
        );
        Ok((Tensor::new(out, shape), pre))
    }

    /// The matrix product `[m, k] [k, n]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn matmul(&self, right: &Tensor) -> Result<Tensor> {
        let (&[m, k], &[k2, n]) = (&self.shape()[..], &right.shape()[..]) else {
            return Err(Error::shape("matmul", "two matrices", right.shape()));
        };
        if k != k2 {
            return Err(Error::shape("matmul", format!("[{k}, columns]"), right.shape()));
        }
        let mut out = Buffer::uninit(m * n);
        let rhs = Rhs::RowMajor(right.values(), n);
        matmul((m, n, k), Lhs::rows(self.values(), k), rhs, &mut out, n, Epilogue::default());
        let (a_edge, b_edge) = (self.edge(), right.edge());
        let (a, b) = (self.detach(), right.detach());
        let parents = [a_edge.clone(), b_edge.clone()];
        Ok(Tensor::new(out, [m, n]).tracked(&[&parents[0], &parents[1]], move |g, tape| {
            tape.add(&a_edge, || {
                let mut da = Buffer::uninit(m * k);
                let rhs = Rhs::Transposed(b.values(), n);
                matmul((m, k, n), Lhs::rows(g.values(), n), rhs, &mut da, k, Epilogue::default());
                Tensor::new(da, [m, k])
            });
            tape.add(&b_edge, || {
                let mut db = Buffer::uninit(k * n);
                let rhs = Rhs::RowMajor(g.values(), n);
                let lhs = Lhs::transposed(a.values(), k);
                matmul((k, n, m), lhs, rhs, &mut db, n, Epilogue::default());
                Tensor::new(db, [k, n])
            });
        }))
    }

    /// The transpose of a matrix.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub fn transpose(&self) -> Result<Tensor> {
        let &[_, _] = &self.shape()[..] else {
            return Err(Error::shape("transpose", "a matrix", self.shape()));
        };
        self.permute(&[1, 0])
    }

    /// The activation of every value.
    ///
    /// # Errors
    /// Never; a result like the other operations.
    pub fn activate(&self, activation: Activation) -> Result<Tensor> {
        let mut out = Buffer::uninit(self.elements());
        activation::forward(activation, self.values(), &mut out);
        let (edge, x) = (self.edge(), self.detach());
        let shape: Shape = self.shape().clone();
        Ok(Tensor::new(out, shape).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut dx = Buffer::uninit(x.elements());
                activation::backward(activation, x.values(), grad.values(), &mut dx);
                Tensor::new(dx, x.shape().clone())
            });
        }))
    }
}
