//! Norms as plain loops in f64.

/// As [`super::layer_norm_forward`].
pub fn layer_norm(
    x: &[f32],
    width: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    out: &mut [f32],
) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / width as f64;
        let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / width as f64;
        for i in 0..width {
            let h = (f64::from(x[i]) - mean) / (variance + eps).sqrt();
            out[i] = (h * f64::from(weight[i]) + f64::from(bias[i])) as f32;
        }
    }
}
