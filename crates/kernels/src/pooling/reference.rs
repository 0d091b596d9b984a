//! Pooling as plain loops in f64.

use super::Pool2d;

/// The pixels of each window, as indices into the input.
fn windows(sizes: &Pool2d) -> Vec<Vec<usize>> {
    let mut all = Vec::new();
    for plane in 0..sizes.planes {
        for y in 0..sizes.grid_h() {
            for x in 0..sizes.grid_w() {
                let mut window = Vec::new();
                for i in 0..sizes.kernel {
                    for j in 0..sizes.kernel {
                        let row = (y * sizes.stride + i).wrapping_sub(sizes.padding.top);
                        let col = (x * sizes.stride + j).wrapping_sub(sizes.padding.left);
                        if row < sizes.img_h && col < sizes.img_w {
                            window.push((plane * sizes.img_h + row) * sizes.img_w + col);
                        }
                    }
                }
                all.push(window);
            }
        }
    }
    all
}

/// The mean of each window.
pub fn average_forward(sizes: &Pool2d, pixels: &[f64]) -> Vec<f64> {
    let mean = |w: &Vec<usize>| w.iter().map(|&i| pixels[i]).sum::<f64>() / w.len() as f64;
    windows(sizes).iter().map(mean).collect()
}

/// The gradient of [`average_forward`].
pub fn average_backward(sizes: &Pool2d, grad_out: &[f64]) -> Vec<f64> {
    let mut grad = vec![0.0; sizes.input_len()];
    for (window, g) in windows(sizes).iter().zip(grad_out) {
        for &i in window {
            grad[i] += g / window.len() as f64;
        }
    }
    grad
}

/// The largest value of each window.
pub fn max_forward(sizes: &Pool2d, pixels: &[f64]) -> Vec<f64> {
    let largest = |w: &Vec<usize>| w.iter().map(|&i| pixels[i]).fold(f64::NEG_INFINITY, f64::max);
    windows(sizes).iter().map(largest).collect()
}

/// The gradient of [`max_forward`]: each goes to the first of the largest values.
pub fn max_backward(sizes: &Pool2d, pixels: &[f64], grad_out: &[f64]) -> Vec<f64> {
    let mut grad = vec![0.0; sizes.input_len()];
    let largest = max_forward(sizes, pixels);
    for ((window, g), largest) in windows(sizes).iter().zip(grad_out).zip(largest) {
        if let Some(&i) = window.iter().find(|&&i| pixels[i] >= largest) {
            grad[i] += g;
        }
    }
    grad
}

/// The mean of each plane.
pub fn mean_forward(pixels_per_plane: usize, pixels: &[f64]) -> Vec<f64> {
    let mean = |p: &[f64]| p.iter().sum::<f64>() / p.len() as f64;
    pixels.chunks(pixels_per_plane).map(mean).collect()
}

/// The gradient of [`mean_forward`].
pub fn mean_backward(pixels_per_plane: usize, grad_out: &[f64]) -> Vec<f64> {
    let spread = |g: &f64| vec![g / pixels_per_plane as f64; pixels_per_plane];
    grad_out.iter().flat_map(spread).collect()
}
