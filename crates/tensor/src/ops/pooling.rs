//! Pooling of pictures.

use super::conv::{PicturePadding, pictures};
use crate::{Error, Result, Tensor};
use ocelli_kernels::Buffer;
use ocelli_kernels::pooling::{self, Pool2d};

impl Tensor {
    /// The mean of each window of `kernel` x `kernel` pixels, windows side by side:
    /// `[batch, channels, img_h, img_w]` to `[batch, channels, img_h / kernel, img_w / kernel]`.
    ///
    /// # Errors
    /// If a window does not fit.
    pub fn average_pool(&self, kernel: usize) -> Result<Tensor> {
        let [batch, channels, img_h, img_w] = pictures("average_pool", self)?;
        if kernel == 0 || img_h < kernel || img_w < kernel {
            let want = format!("pictures that a window of {kernel} x {kernel} fits");
            return Err(Error::shape("average_pool", want, self.shape()));
        }
        let sizes = Pool2d::disjoint(batch * channels, img_h, img_w, kernel);
        let mut out = Buffer::uninit(sizes.output_len());
        pooling::average_forward(&sizes, self.values(), &mut out);
        let out = Tensor::new(out, [batch, channels, sizes.grid_h(), sizes.grid_w()]);
        let (edge, shape) = (self.edge(), self.shape().clone());
        Ok(out.tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::uninit(sizes.input_len());
                pooling::average_backward(&sizes, grad.values(), &mut d);
                Tensor::new(d, shape)
            });
        }))
    }

    /// The largest value of each window of `kernel` x `kernel` pixels, `stride` apart, with SAME
    /// padding that never wins: `[batch, channels, img_h, img_w]` to
    /// `[batch, channels, ceil(img_h / stride), ceil(img_w / stride)]`.
    ///
    /// # Errors
    /// If the tensor does not hold pictures.
    pub fn max_pool(&self, kernel: usize, stride: usize) -> Result<Tensor> {
        let [batch, channels, img_h, img_w] = pictures("max_pool", self)?;
        if kernel == 0 || stride == 0 {
            return Err(Error::shape("max_pool", "a window and a stride", self.shape()));
        }
        let padding =
            PicturePadding::Same.around("max_pool", self.shape(), (kernel, kernel), stride)?;
        let sizes = Pool2d { planes: batch * channels, img_h, img_w, kernel, stride, padding };
        let mut out = Buffer::uninit(sizes.output_len());
        let mut index = Buffer::zeroed(sizes.output_len());
        pooling::max_forward(&sizes, self.values(), &mut out, &mut index);
        let out = Tensor::new(out, [batch, channels, sizes.grid_h(), sizes.grid_w()]);
        let (edge, shape) = (self.edge(), self.shape().clone());
        Ok(out.tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::uninit(sizes.input_len());
                pooling::max_backward(&sizes, &index, grad.values(), &mut d);
                Tensor::new(d, shape)
            });
        }))
    }

    /// The mean of each channel: `[batch, channels, img_h, img_w]` to `[batch, channels]`.
    ///
    /// # Errors
    /// If the tensor does not hold pictures.
    pub fn mean_pool(&self) -> Result<Tensor> {
        let [batch, channels, img_h, img_w] = pictures("mean_pool", self)?;
        let mut out = Buffer::uninit(batch * channels);
        pooling::mean_forward(img_h * img_w, self.values(), &mut out);
        let (edge, shape) = (self.edge(), self.shape().clone());
        let out = Tensor::new(out, [batch, channels]);
        Ok(out.tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut d = Buffer::uninit(shape.elements());
                pooling::mean_backward(img_h * img_w, grad.values(), &mut d);
                Tensor::new(d, shape)
            });
        }))
    }
}
