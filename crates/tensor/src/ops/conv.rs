//! Convolution over pictures, and filters of mean 0 and variance 1 for it.

use crate::{Error, Result, Shape, Tensor};
use ocelli_kernels::Buffer;
use ocelli_kernels::conv2d::{self, Conv2d, Padding};

/// What lies around a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicturePadding {
    /// This many pixels on all sides.
    Uniform(usize),
    /// As many as make the grid `ceil(side / stride)`, an odd one at the bottom and at the right:
    /// what TensorFlow calls SAME.
    Same,
}

impl PicturePadding {
    /// The pixels on each side; fails unless a window fits.
    pub(super) fn around(
        self,
        op: &'static str,
        shape: &Shape,
        kernel: (usize, usize),
        stride: usize,
    ) -> Result<Padding> {
        let [.., img_h, img_w] = shape[..] else {
            return Err(Error::shape(op, "[batch, channels, img_h, img_w]", shape));
        };
        let padding = match self {
            Self::Uniform(pixels) => Padding::uniform(pixels),
            Self::Same => Padding::same((img_h, img_w), kernel, (stride, stride)),
        };
        let Padding { top, bottom, left, right } = padding;
        if img_h + top + bottom < kernel.0 || img_w + left + right < kernel.1 {
            let want = format!("pictures that a window of {} x {} fits", kernel.0, kernel.1);
            return Err(Error::shape(op, want, shape));
        }
        Ok(padding)
    }
}

/// Batch, channels, height and width of pictures.
pub(super) fn pictures(op: &'static str, x: &Tensor) -> Result<[usize; 4]> {
    match x.shape()[..] {
        [batch, channels, img_h, img_w] if x.elements() > 0 => Ok([batch, channels, img_h, img_w]),
        _ => Err(Error::shape(op, "pictures [batch, channels, img_h, img_w]", x.shape())),
    }
}

impl Tensor {
    /// The convolution of pictures `[batch, in, img_h, img_w]` with `weight`
    /// `[out, in, kernel_h, kernel_w]`, `stride` pixels apart, plus `bias` `[out]`; gives
    /// `[batch, out, grid_h, grid_w]`. As in every framework the kernel is not flipped.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn conv2d(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        padding: PicturePadding,
    ) -> Result<Tensor> {
        let [batch, in_channels, img_h, img_w] = pictures("conv2d", self)?;
        let &[out_channels, fan, kernel_h, kernel_w] = &weight.shape()[..] else {
            let want = "a weight [out, in, kernel_h, kernel_w]";
            return Err(Error::shape("conv2d", want, weight.shape()));
        };
        if fan != in_channels || weight.elements() == 0 || stride == 0 {
            let want = format!("a weight [out, {in_channels}, kernel_h, kernel_w]");
            return Err(Error::shape("conv2d", want, weight.shape()));
        }
        if let Some(b) = bias.filter(|b| b.shape()[..] != [out_channels]) {
            return Err(Error::shape("conv2d", format!("a bias [{out_channels}]"), b.shape()));
        }
        let kernel = (kernel_h, kernel_w);
        let conv = Conv2d {
            batch,
            in_channels,
            img_h,
            img_w,
            out_channels,
            kernel,
            stride: (stride, stride),
            padding: padding.around("conv2d", self.shape(), kernel, stride)?,
        };
        let mut out = Buffer::uninit(conv.output_len());
        let (x, w, b) = (self.values(), weight.values(), bias.map(Tensor::values));
        conv2d::forward(&conv, x, w, b, &mut out);
        let out = Tensor::new(out, [batch, out_channels, conv.grid_h(), conv.grid_w()]);

        let (x_edge, w_edge, b_edge) = (self.edge(), weight.edge(), bias.map(Tensor::edge));
        let mut parents = vec![x_edge.clone(), w_edge.clone()];
        parents.extend(b_edge.clone());
        // The pictures are kept for the gradient of the weight, the weight for that of the pictures.
        let kept_x = w_edge.is_tracked().then(|| self.detach());
        let kept_w = x_edge.is_tracked().then(|| weight.detach());
        let (x_shape, w_shape) = (self.shape().clone(), weight.shape().clone());
        Ok(out.tracked(&parents.iter().collect::<Vec<_>>(), move |grad, tape| {
            let g = grad.values();
            if let Some(edge) = &b_edge {
                tape.add(edge, || {
                    let mut d = Buffer::uninit(out_channels);
                    conv2d::grad_bias(&conv, g, &mut d);
                    Tensor::new(d, [out_channels])
                });
            }
            if let Some(x) = kept_x {
                tape.add(&w_edge, || {
                    let mut d = Buffer::uninit(w_shape.elements());
                    conv2d::grad_weight(&conv, x.values(), g, &mut d);
                    Tensor::new(d, w_shape)
                });
            }
            if let Some(w) = kept_w {
                tape.add(&x_edge, || {
                    let mut d = Buffer::uninit(x_shape.elements());
                    conv2d::grad_input(&conv, w.values(), g, &mut d);
                    Tensor::new(d, x_shape)
                });
            }
        }))
    }

    /// Filters `[out, ..]`, each brought to mean 0 and variance 1 (Qiao et al. 2019,
    /// arXiv:1903.10520): `(w - mean) / sqrt(biased variance + eps)`.
    ///
    /// # Errors
    /// If the tensor is a scalar or empty.
    pub fn standardise_filters(&self, eps: f32) -> Result<Tensor> {
        let filters = self.shape().first().copied().unwrap_or(0);
        if self.elements() == 0 || filters == 0 {
            return Err(Error::shape("standardise_filters", "filters [out, ..]", self.shape()));
        }
        let fan_in = self.elements() / filters;
        let mut out = Buffer::uninit(self.elements());
        conv2d::standardise_forward(self.values(), fan_in, eps, &mut out);
        let (edge, weight) = (self.edge(), self.detach());
        Ok(Tensor::new(out, self.shape().clone()).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::uninit(weight.elements());
                conv2d::standardise_backward(weight.values(), grad.values(), fan_in, eps, &mut d);
                Tensor::new(d, weight.shape().clone())
            });
        }))
    }
}
