//! Convolutions at the shapes of a ResNet-50 at 224 pixels and of a small ResNet at 32, forward and
//! backward, in GFLOP/s (a multiply-add counts 2).
//!
//! Run: `cargo bench -p ocelli-kernels --bench conv2d`. `divan` prints times and rates per shape;
//! the table before it is the summary: the best of 15 runs, with the share of the multiply-add rate
//! of this machine.

use divan::counter::ItemsCount;
use ocelli_kernels::conv2d::{self, Conv2d, Padding};
use ocelli_kernels::simd::fma_rate;
use std::hint::black_box;
use std::time::Instant;

/// Pictures, channels in, side in pixels, channels out, kernel, stride.
const SHAPES: [(usize, usize, usize, usize, usize, usize); 22] = [
    (1, 3, 224, 64, 7, 2),
    (1, 64, 56, 64, 3, 1),
    (1, 64, 56, 256, 1, 1),
    (1, 256, 56, 64, 1, 1),
    (1, 128, 28, 128, 3, 1),
    (1, 256, 14, 256, 3, 1),
    (1, 1024, 14, 256, 1, 1),
    (1, 512, 7, 512, 3, 1),
    (1, 128, 56, 128, 3, 2),
    (8, 64, 56, 64, 3, 1),
    (8, 256, 14, 256, 3, 1),
    (8, 1024, 14, 256, 1, 1),
    (8, 512, 7, 512, 3, 1),
    (8, 2048, 7, 512, 1, 1),
    (8, 512, 7, 2048, 1, 1),
    (8, 512, 14, 512, 3, 2),
    (8, 1024, 14, 2048, 1, 2),
    (32, 64, 32, 64, 3, 1),
    (32, 256, 8, 256, 3, 1),
    (32, 512, 4, 512, 3, 1),
    (32, 256, 8, 512, 3, 2),
    (32, 512, 2, 512, 3, 1),
];

struct Layer {
    conv: Conv2d,
    pixels: Vec<f32>,
    weight: Vec<f32>,
    out: Vec<f32>,
    grad_pixels: Vec<f32>,
    grad_weight: Vec<f32>,
}

impl Layer {
    fn new(
        (batch, in_channels, side, out_channels, kernel, stride): (
            usize,
            usize,
            usize,
            usize,
            usize,
            usize,
        ),
    ) -> Self {
        let conv = Conv2d {
            batch,
            in_channels,
            img_h: side,
            img_w: side,
            out_channels,
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: Padding::same((side, side), (kernel, kernel), (stride, stride)),
        };
        let values = |n: usize| {
            (0..n).map(|i| ((i * 7919) % 2003) as f32 / 2003.0 - 0.5).collect::<Vec<_>>()
        };
        Self {
            pixels: values(conv.input_len()),
            weight: values(out_channels * conv.fan_in()),
            out: values(conv.output_len()),
            grad_pixels: values(conv.input_len()),
            grad_weight: values(out_channels * conv.fan_in()),
            conv,
        }
    }

    fn forward(&mut self) {
        let Self { conv, pixels, weight, out, .. } = self;
        conv2d::forward(conv, pixels, weight, None, out);
        black_box(out);
    }

    fn grad_input(&mut self) {
        let Self { conv, weight, out, grad_pixels, .. } = self;
        conv2d::grad_input(conv, weight, out, grad_pixels);
        black_box(grad_pixels);
    }

    fn grad_weight(&mut self) {
        let Self { conv, pixels, out, grad_weight, .. } = self;
        conv2d::grad_weight(conv, pixels, out, grad_weight);
        black_box(grad_weight);
    }
}

fn rate(layer: &mut Layer, run: fn(&mut Layer)) -> f64 {
    run(layer);
    let best = (0..15)
        .map(|_| {
            let start = Instant::now();
            run(layer);
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * layer.conv.multiply_adds() as f64 / best / 1e9
}

#[allow(clippy::print_stdout)] // The table is what the bench is for.
fn main() {
    let peak = fma_rate();
    println!(
        "multiply-add rate {peak:.0} GFLOP/s; GFLOP/s (share) of forward, grad_input, grad_weight"
    );
    for shape in SHAPES {
        let mut layer = Layer::new(shape);
        let (batch, c, side, o, k, s) = shape;
        print!("{batch} x {c:4} x {side:3}^2 -> {o:4}, {k}x{k} stride {s}:");
        for run in [Layer::forward, Layer::grad_input, Layer::grad_weight] {
            let rate = rate(&mut layer, run);
            print!("  {rate:4.0} ({:3.0} %)", 100.0 * rate / peak);
        }
        println!();
    }
    divan::main();
}

#[divan::bench(args = SHAPES)]
fn conv2d_forward(bencher: divan::Bencher, shape: (usize, usize, usize, usize, usize, usize)) {
    let mut layer = Layer::new(shape);
    let flops = 2 * layer.conv.multiply_adds();
    bencher.counter(ItemsCount::new(flops)).bench_local(|| layer.forward());
}

#[divan::bench(args = SHAPES)]
fn conv2d_backward(bencher: divan::Bencher, shape: (usize, usize, usize, usize, usize, usize)) {
    let mut layer = Layer::new(shape);
    let flops = 4 * layer.conv.multiply_adds();
    bencher.counter(ItemsCount::new(flops)).bench_local(|| {
        layer.grad_input();
        layer.grad_weight();
    });
}
