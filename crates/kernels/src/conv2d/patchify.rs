//! The convolution whose kernel equals its stride: cutting a picture into patches and projecting
//! each to a token (Dosovitskiy et al. 2020, arXiv:2010.11929, Eq. 1). One matrix product, with
//! tokens rather than channels outermost in the result.

use super::Conv2d;
use crate::buffer::Buffer;
use crate::gemm::{Epilogue, Lhs, Rhs, matmul};
use crate::pool::{Shared, parallel_for};

/// Which way [`copy_patches`] copies.
#[derive(Clone, Copy)]
enum Copy<'a> {
    FromPixels(&'a [f32]),
    ToPixels(Shared<f32>),
}

fn check(conv: &Conv2d) {
    assert!(
        conv.kernel == conv.stride && conv.padding == super::Padding::default(),
        "patches do not overlap and have no padding, got {conv:?}"
    );
}

/// Copies between pictures and rows `[batch * patches, fan_in]`.
fn copy_patches(conv: &Conv2d, rows: Shared<f32>, copy: Copy) {
    let (grid_h, grid_w, fan_in) = (conv.grid_h(), conv.grid_w(), conv.fan_in());
    let (patch_h, patch_w) = conv.kernel;
    parallel_for(conv.batch * grid_h, |task| {
        let (sample, y) = (task / grid_h, task % grid_h);
        for channel in 0..conv.in_channels {
            for i in 0..patch_h {
                let line = (sample * conv.in_channels + channel) * conv.img_h + y * patch_h + i;
                for x in 0..grid_w {
                    let row = (task * grid_w + x) * fan_in;
                    let at = row + (channel * patch_h + i) * patch_w;
                    let pixel = line * conv.img_w + x * patch_w;
                    // SAFETY: a task touches its own rows of patches and lines of pixels.
                    unsafe {
                        let row = rows.slice(at, patch_w);
                        match copy {
                            Copy::FromPixels(p) => row.copy_from_slice(&p[pixel..][..patch_w]),
                            Copy::ToPixels(p) => p.slice(pixel, patch_w).copy_from_slice(row),
                        }
                    }
                }
            }
        }
    });
}

fn patch_rows(conv: &Conv2d, pixels: &[f32]) -> Buffer<f32> {
    assert_eq!(pixels.len(), conv.input_len(), "pixels of {conv:?}");
    let mut rows = Buffer::uninit(conv.batch * conv.patches() * conv.fan_in());
    copy_patches(conv, Shared::new(&mut rows), Copy::FromPixels(pixels));
    rows
}

/// `out` `[batch, patches, out_channels]` of `pixels` `[batch, in_channels, img_h, img_w]`.
/// `weight` is `[out_channels, fan_in]` as [`Rhs::Transposed`], or packed as
/// `[fan_in, out_channels]`.
///
/// # Panics
/// If patches overlap or are padded, or a slice is too short.
pub fn patchify_forward(
    conv: &Conv2d,
    pixels: &[f32],
    weight: Rhs,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    check(conv);
    let (fan_in, width) = (conv.fan_in(), conv.out_channels);
    let rows = patch_rows(conv, pixels);
    let epilogue = Epilogue { bias, ..Epilogue::default() };
    let sizes = (conv.batch * conv.patches(), width, fan_in);
    matmul(sizes, Lhs::rows(&rows, fan_in), weight, out, width, epilogue);
}

/// Overwrites `grad_weight` `[out_channels, fan_in]` and `grad_bias` `[out_channels]` with their
/// gradients, from `grad_out` `[batch, patches, out_channels]`.
///
/// # Panics
/// As [`patchify_forward`].
pub fn patchify_backward(
    conv: &Conv2d,
    pixels: &[f32],
    grad_out: &[f32],
    grad_weight: &mut [f32],
    grad_bias: Option<&mut [f32]>,
) {
    check(conv);
    let (fan_in, width) = (conv.fan_in(), conv.out_channels);
    let tokens = conv.batch * conv.patches();
    assert!(grad_out.len() == tokens * width && grad_weight.len() == width * fan_in);
    let rows = patch_rows(conv, pixels);
    matmul(
        (width, fan_in, tokens),
        Lhs::transposed(grad_out, width),
        Rhs::RowMajor(&rows, fan_in),
        grad_weight,
        fan_in,
        Epilogue::default(),
    );
    if let Some(grad_bias) = grad_bias {
        let ones = vec![1.0; tokens];
        matmul(
            (1, width, tokens),
            Lhs::rows(&ones, tokens),
            Rhs::RowMajor(grad_out, width),
            grad_bias,
            width,
            Epilogue::default(),
        );
    }
}

/// Overwrites `grad_pixels` with the gradient of the pictures; pixels beyond the last whole patch
/// get 0. `weight` is `[out_channels, fan_in]`.
///
/// # Panics
/// As [`patchify_forward`].
pub fn patchify_grad_pixels(
    conv: &Conv2d,
    weight: &[f32],
    grad_out: &[f32],
    grad_pixels: &mut [f32],
) {
    check(conv);
    assert_eq!(grad_pixels.len(), conv.input_len(), "pixels of {conv:?}");
    let (fan_in, width) = (conv.fan_in(), conv.out_channels);
    let tokens = conv.batch * conv.patches();
    let mut rows = Buffer::uninit(tokens * fan_in);
    matmul(
        (tokens, fan_in, width),
        Lhs::rows(grad_out, width),
        Rhs::RowMajor(weight, fan_in),
        &mut rows,
        fan_in,
        Epilogue::default(),
    );
    grad_pixels.fill(0.0);
    copy_patches(conv, Shared::new(&mut rows), Copy::ToPixels(Shared::new(grad_pixels)));
}
