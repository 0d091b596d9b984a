//! The convolution as plain loops in f64.

use super::Conv2d;

/// Calls `term(out, weight, pixel)` with the three indices of every product of the convolution.
fn terms(conv: &Conv2d, mut term: impl FnMut(usize, usize, usize)) {
    let (grid_h, grid_w) = (conv.grid_h(), conv.grid_w());
    for n in 0..conv.batch {
        for o in 0..conv.out_channels {
            for y in 0..grid_h {
                for x in 0..grid_w {
                    for c in 0..conv.in_channels {
                        for i in 0..conv.kernel.0 {
                            for j in 0..conv.kernel.1 {
                                let row = (y * conv.stride.0 + i).wrapping_sub(conv.padding.top);
                                let col = (x * conv.stride.1 + j).wrapping_sub(conv.padding.left);
                                if row < conv.img_h && col < conv.img_w {
                                    term(
                                        ((n * conv.out_channels + o) * grid_h + y) * grid_w + x,
                                        ((o * conv.in_channels + c) * conv.kernel.0 + i)
                                            * conv.kernel.1
                                            + j,
                                        ((n * conv.in_channels + c) * conv.img_h + row)
                                            * conv.img_w
                                            + col,
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The output before any activation.
pub fn forward(conv: &Conv2d, pixels: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let patches = conv.patches();
    let mut out: Vec<f64> = (0..conv.output_len())
        .map(|i| bias.map_or(0.0, |b| b[i / patches % conv.out_channels]))
        .collect();
    terms(conv, |o, w, p| out[o] += weight[w] * pixels[p]);
    out
}

/// The gradients of pixels, weight and bias.
pub fn backward(
    conv: &Conv2d,
    pixels: &[f64],
    weight: &[f64],
    grad_out: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dx, mut dw) = (vec![0.0; pixels.len()], vec![0.0; weight.len()]);
    let mut db = vec![0.0; conv.out_channels];
    terms(conv, |o, w, p| {
        dx[p] += weight[w] * grad_out[o];
        dw[w] += pixels[p] * grad_out[o];
    });
    let patches = conv.patches();
    for (i, g) in grad_out.iter().enumerate() {
        db[i / patches % conv.out_channels] += g;
    }
    (dx, dw, db)
}

/// Each row of `weight` `[filters, fan_in]` with mean 0 and variance 1:
/// `(w - mean) / sqrt(variance + eps)`.
pub fn standardise(weight: &[f64], fan_in: usize, eps: f64) -> Vec<f64> {
    weight
        .chunks(fan_in)
        .flat_map(|row| {
            let mean = row.iter().sum::<f64>() / fan_in as f64;
            let variance = row.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / fan_in as f64;
            row.iter().map(move |w| (w - mean) / (variance + eps).sqrt())
        })
        .collect()
}

/// The gradient of [`standardise`].
pub fn standardise_backward(weight: &[f64], grad_out: &[f64], fan_in: usize, eps: f64) -> Vec<f64> {
    let normal = standardise(weight, fan_in, eps);
    let count = fan_in as f64;
    let mut grad = Vec::new();
    for ((w, g), n) in weight.chunks(fan_in).zip(grad_out.chunks(fan_in)).zip(normal.chunks(fan_in))
    {
        let mean = w.iter().sum::<f64>() / count;
        let variance = w.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / count;
        let g_mean = g.iter().sum::<f64>() / count;
        let along = g.iter().zip(n).map(|(g, n)| g * n).sum::<f64>() / count;
        grad.extend(
            g.iter().zip(n).map(|(g, n)| (g - g_mean - n * along) / (variance + eps).sqrt()),
        );
    }
    grad
}
