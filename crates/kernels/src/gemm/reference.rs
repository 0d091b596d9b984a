//! The matrix product as plain loops.

use super::Epilogue;

/// `out[m, n] = a[m, k] b[k, n]`, both dense and row-major, with `epilogue`.
pub fn matmul(
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    out_stride: usize,
    mut epilogue: Epilogue,
) {
    for i in 0..m {
        for j in 0..n {
            let at = i * out_stride + j;
            let mut x = if epilogue.accumulate { f64::from(out[at]) } else { 0.0 };
            for l in 0..k {
                x += f64::from(a[i * k + l]) * f64::from(b[l * n + j]);
            }
            x += epilogue.bias.map_or(0.0, |v| f64::from(v[j]));
            x += epilogue.row_bias.map_or(0.0, |v| f64::from(v[i]));
            if let Some(pre) = &mut epilogue.pre_activation {
                pre[at] = x as f32;
            }
            x = crate::activation::reference::apply(epilogue.activation, x);
            x += epilogue.residual.map_or(0.0, |v| f64::from(v[at]));
            out[at] = x as f32;
        }
    }
}
