//! Pooling over pictures `[batch, channels, img_h, img_w]`: averages of disjoint windows, maxima of
//! overlapping ones, and the mean of a whole channel.
//!
//! Every plane (a channel of a picture) is one piece of work, so no picture depends on another.

pub mod reference;
#[cfg(test)]
mod tests;

use crate::batch_norm::plane::sum;
use crate::conv2d::{Padding, positions};
use crate::pool::{Shared, parallel_rows};

/// Values that a task moves at least.
const GRAIN: usize = 1 << 14;

/// Sizes of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// Pictures times channels.
    pub planes: usize,
    /// Height of a picture, in pixels.
    pub img_h: usize,
    /// Width of a picture, in pixels.
    pub img_w: usize,
    /// Side of the square window, in pixels.
    pub kernel: usize,
    /// Step of the window, in pixels.
    pub stride: usize,
    /// Pixels around the picture that take no part in a maximum.
    pub padding: Padding,
}

impl Pool2d {
    /// Windows of `kernel` pixels side by side; a rest at the bottom or the right is left out.
    pub fn disjoint(planes: usize, img_h: usize, img_w: usize, kernel: usize) -> Self {
        Self { planes, img_h, img_w, kernel, stride: kernel, padding: Padding::default() }
    }

    /// Rows of the output.
    ///
    /// # Panics
    /// If the window is larger than the padded picture.
    pub fn grid_h(&self) -> usize {
        let Padding { top, bottom, .. } = self.padding;
        positions(self.img_h, top, bottom, self.kernel, self.stride)
    }

    /// Columns of the output.
    ///
    /// # Panics
    /// If the window is larger than the padded picture.
    pub fn grid_w(&self) -> usize {
        let Padding { left, right, .. } = self.padding;
        positions(self.img_w, left, right, self.kernel, self.stride)
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.planes * self.plane_len()
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.planes * self.grid_h() * self.grid_w()
    }

    fn plane_len(&self) -> usize {
        self.img_h * self.img_w
    }

    fn check(&self, input: usize, output: usize) {
        let need = (self.input_len(), self.output_len());
        assert!((input, output) == need, "{self:?} needs {need:?}, got {:?}", (input, output));
    }

    fn check_disjoint(&self) {
        let plain = self.stride == self.kernel && self.padding == Padding::default();
        assert!(plain, "averages are taken over disjoint windows without padding, got {self:?}");
    }

    /// The pixels of window `at` along an axis of `img` with `before` padded pixels.
    fn window(&self, at: usize, before: usize, img: usize) -> std::ops::Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(before).min(img)..(start + self.kernel).saturating_sub(before).min(img)
    }
}

/// `out` `[planes, grid_h, grid_w]`: the mean of each window.
///
/// # Panics
/// If a slice does not have the length that `sizes` states, or the windows are not disjoint.
pub fn average_forward(sizes: &Pool2d, pixels: &[f32], out: &mut [f32]) {
    sizes.check(pixels.len(), out.len());
    sizes.check_disjoint();
    let (grid_w, kernel) = (sizes.grid_w(), sizes.kernel);
    let out_len = sizes.grid_h() * grid_w;
    let scale = 1.0 / (kernel * kernel) as f32;
    let to = Shared::new(out);
    parallel_rows(sizes.planes, sizes.plane_len(), GRAIN, |first, planes| {
        for p in first..first + planes {
            let pixels = &pixels[p * sizes.plane_len()..][..sizes.plane_len()];
            // SAFETY: each plane is written by one task.
            let out = unsafe { to.slice(p * out_len, out_len) };
            for (out, rows) in
                out.chunks_exact_mut(grid_w).zip(pixels.chunks_exact(kernel * sizes.img_w))
            {
                out.fill(0.0);
                for row in rows.chunks_exact(sizes.img_w) {
                    for (out, window) in out.iter_mut().zip(row.chunks_exact(kernel)) {
                        *out += window.iter().sum::<f32>();
                    }
                }
                for v in out {
                    *v *= scale;
                }
            }
        }
    });
}

/// Overwrites `grad_pixels` with the gradient of [`average_forward`].
///
/// # Panics
/// As [`average_forward`].
pub fn average_backward(sizes: &Pool2d, grad_out: &[f32], grad_pixels: &mut [f32]) {
    sizes.check(grad_pixels.len(), grad_out.len());
    sizes.check_disjoint();
    let (grid_w, kernel) = (sizes.grid_w(), sizes.kernel);
    let out_len = sizes.grid_h() * grid_w;
    let scale = 1.0 / (kernel * kernel) as f32;
    let to = Shared::new(grad_pixels);
    parallel_rows(sizes.planes, sizes.plane_len(), GRAIN, |first, planes| {
        for p in first..first + planes {
            let grad_out = &grad_out[p * out_len..][..out_len];
            // SAFETY: each plane is written by one task.
            let pixels = unsafe { to.slice(p * sizes.plane_len(), sizes.plane_len()) };
            for (y, row) in pixels.chunks_exact_mut(sizes.img_w).enumerate() {
                row.fill(0.0);
                let Some(g) = grad_out.chunks_exact(grid_w).nth(y / kernel) else { continue };
                for (g, window) in g.iter().zip(row.chunks_exact_mut(kernel)) {
                    window.fill(g * scale);
                }
            }
        }
    });
}

/// `out` `[planes, grid_h, grid_w]`: the largest value of each window; `index` receives where in
/// its plane it lies. Padding counts as minus infinity; of equal values the first is taken, and a
/// value that is not a number wins.
///
/// # Panics
/// If a slice does not have the length that `sizes` states, or a window lies in the padding.
pub fn max_forward(sizes: &Pool2d, pixels: &[f32], out: &mut [f32], index: &mut [u32]) {
    sizes.check(pixels.len(), out.len());
    assert!(index.len() == out.len() && u32::try_from(sizes.plane_len()).is_ok());
    let (grid_h, grid_w) = (sizes.grid_h(), sizes.grid_w());
    let Padding { top, left, .. } = sizes.padding;
    let covers = |n: usize, before, img| (0..n).all(|at| !sizes.window(at, before, img).is_empty());
    assert!(
        covers(grid_h, top, sizes.img_h) && covers(grid_w, left, sizes.img_w),
        "a window of {sizes:?} lies in the padding"
    );
    let (to, index) = (Shared::new(out), Shared::new(index));
    parallel_rows(sizes.planes, sizes.plane_len(), GRAIN, |first, planes| {
        for p in first..first + planes {
            let pixels = &pixels[p * sizes.plane_len()..][..sizes.plane_len()];
            for y in 0..grid_h {
                let at = (p * grid_h + y) * grid_w;
                // SAFETY: each plane is written by one task.
                let (out, index) = unsafe { (to.slice(at, grid_w), index.slice(at, grid_w)) };
                for x in 0..grid_w {
                    let (mut best, mut best_at) = (f32::NEG_INFINITY, None);
                    for row in sizes.window(y, top, sizes.img_h) {
                        for col in sizes.window(x, left, sizes.img_w) {
                            let v = pixels[row * sizes.img_w + col];
                            if best_at.is_none() || v > best || v.is_nan() {
                                (best, best_at) = (v, Some(row * sizes.img_w + col));
                            }
                        }
                    }
                    out[x] = best;
                    index[x] = best_at.unwrap_or_default() as u32;
                }
            }
        }
    });
}

/// Overwrites `grad_pixels` with the gradient of [`max_forward`], whose `index` this is.
///
/// # Panics
/// If a slice does not have the length that `sizes` states, or an index lies outside its plane.
pub fn max_backward(sizes: &Pool2d, index: &[u32], grad_out: &[f32], grad_pixels: &mut [f32]) {
    sizes.check(grad_pixels.len(), grad_out.len());
    assert_eq!(index.len(), grad_out.len(), "one index per output");
    let out_len = sizes.grid_h() * sizes.grid_w();
    let to = Shared::new(grad_pixels);
    parallel_rows(sizes.planes, sizes.plane_len(), GRAIN, |first, planes| {
        for p in first..first + planes {
            // SAFETY: each plane is written by one task.
            let pixels = unsafe { to.slice(p * sizes.plane_len(), sizes.plane_len()) };
            pixels.fill(0.0);
            let part = p * out_len..(p + 1) * out_len;
            for (g, at) in grad_out[part.clone()].iter().zip(&index[part]) {
                pixels[*at as usize] += g;
            }
        }
    });
}

/// `out` `[planes]`: the mean of each plane of `pixels` values.
///
/// # Panics
/// If the lengths do not fit, or a plane is empty.
pub fn mean_forward(pixels_per_plane: usize, pixels: &[f32], out: &mut [f32]) {
    assert!(pixels_per_plane > 0 && pixels.len() == out.len() * pixels_per_plane);
    let planes = out.len();
    let to = Shared::new(out);
    parallel_rows(planes, pixels_per_plane, GRAIN, |first, planes| {
        for p in first..first + planes {
            let mean =
                sum(&pixels[p * pixels_per_plane..][..pixels_per_plane]) / pixels_per_plane as f32;
            // SAFETY: each plane is written by one task.
            unsafe { *to.get().add(p) = mean };
        }
    });
}

/// Overwrites `grad_pixels` with the gradient of [`mean_forward`].
///
/// # Panics
/// As [`mean_forward`].
pub fn mean_backward(pixels_per_plane: usize, grad_out: &[f32], grad_pixels: &mut [f32]) {
    assert!(pixels_per_plane > 0 && grad_pixels.len() == grad_out.len() * pixels_per_plane);
    let to = Shared::new(grad_pixels);
    parallel_rows(grad_out.len(), pixels_per_plane, GRAIN, |first, planes| {
        for p in first..first + planes {
            // SAFETY: each plane is written by one task.
            let pixels = unsafe { to.slice(p * pixels_per_plane, pixels_per_plane) };
            pixels.fill(grad_out[p] / pixels_per_plane as f32);
        }
    });
}
