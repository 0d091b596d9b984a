//! f32 linear layers at the shapes of ViT-B and CLIP ViT-L, in GFLOP/s and as a share of the peak
//! that this program measures first.
//!
//! Run: `cargo bench -p ocelli-kernels --bench linear`. `divan` prints the times; the table before
//! it is the summary, weights packed beforehand and not.
#![allow(clippy::print_stdout)] // A bench prints its figures.

use ocelli_kernels::buffer::Buffer;
use ocelli_kernels::gemm::{Epilogue, Lhs, PackedRhs, Rhs, matmul};
use ocelli_kernels::pool;
use std::hint::black_box;
use std::time::Instant;

/// Rows, inputs, outputs.
const SHAPES: [(usize, usize, usize); 10] = [
    (197, 768, 2304),
    (197, 768, 768),
    (197, 768, 3072),
    (197, 3072, 768),
    (1576, 768, 2304),
    (1576, 768, 768),
    (1576, 768, 3072),
    (1576, 3072, 768),
    (257, 1024, 4096),
    (257, 4096, 1024),
];

struct Layer {
    x: Buffer<f32>,
    /// Several copies, as a model has many layers: one alone would stay in the cache.
    weights: Vec<Buffer<f32>>,
    packed: Vec<PackedRhs>,
    bias: Vec<f32>,
    y: Buffer<f32>,
    shape: (usize, usize, usize),
    turn: usize,
}

impl Layer {
    fn new((m, k, n): (usize, usize, usize)) -> Self {
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 2003.0 - 0.5;
        // In the memory that tensors live in.
        let buffer = |n: usize, shift: usize| {
            Buffer::from_slice(&(0..n).map(|i| value(i + shift)).collect::<Vec<f32>>())
        };
        let weights: Vec<_> = (0..4).map(|c| buffer(k * n, c)).collect();
        Self {
            x: buffer(m * k, 0),
            packed: weights.iter().map(|w| PackedRhs::new(k, n, Rhs::Transposed(w, k))).collect(),
            weights,
            bias: vec![0.1; n],
            y: Buffer::zeroed(m * n),
            shape: (m, k, n),
            turn: 0,
        }
    }

    fn run(&mut self, packed: bool) {
        let (m, k, n) = self.shape;
        self.turn = (self.turn + 1) % self.weights.len();
        let rhs = if packed {
            Rhs::Packed(&self.packed[self.turn])
        } else {
            Rhs::Transposed(&self.weights[self.turn], k)
        };
        let epilogue = Epilogue { bias: Some(&self.bias), ..Epilogue::default() };
        matmul((m, n, k), Lhs::rows(&self.x, k), rhs, &mut self.y, n, epilogue);
        black_box(&self.y);
    }
}

fn median_seconds(mut run: impl FnMut()) -> f64 {
    run();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The multiply-add rate in GFLOP/s of all threads over values that stay in the first cache: the
/// same tile, 6 rows over a depth of 96.
fn peak() -> f64 {
    let threads = pool::threads();
    let (m, k, n) = (6, 96, 64);
    let a: Vec<f32> = (0..m * k).map(|i| i as f32 * 1e-3).collect();
    let b: Vec<f32> = (0..k * n).map(|i| i as f32 * 1e-4).collect();
    let packed = PackedRhs::new(k, n, Rhs::RowMajor(&b, n));
    let repeats = 2000;
    let seconds = median_seconds(|| {
        pool::parallel_for(threads, |_| {
            let mut y = vec![0.0; m * n];
            for _ in 0..repeats {
                let rhs = Rhs::Packed(&packed);
                matmul((m, n, k), Lhs::rows(&a, k), rhs, &mut y, n, Epilogue::default());
                black_box(&y);
            }
        });
    });
    ((threads * repeats * 2 * m * k * n) as f64 / seconds / 1e9)
        .max(ocelli_kernels::simd::fma_rate())
}

fn main() {
    let peak = peak();
    println!("{} threads, f32 peak {peak:.0} GFLOP/s", pool::threads());
    println!("{:>20} {:>16} {:>16}", "rows x in x out", "packed", "unpacked");
    for (m, k, n) in SHAPES {
        let mut layer = Layer::new((m, k, n));
        let flops = 2.0 * (m * k * n) as f64 / 1e9;
        let rates = [true, false].map(|p| flops / median_seconds(|| layer.run(p)));
        println!(
            "{:>20} {:>9.0} {:>4.0} % {:>9.0} {:>4.0} %",
            format!("{m} x {k} x {n}"),
            rates[0],
            100.0 * rates[0] / peak,
            rates[1],
            100.0 * rates[1] / peak
        );
    }
    divan::main();
}

#[divan::bench(args = SHAPES)]
fn packed(bencher: divan::Bencher, shape: (usize, usize, usize)) {
    let mut layer = Layer::new(shape);
    bencher
        .counter(divan::counter::ItemsCount::new(2 * shape.0 * shape.1 * shape.2))
        .bench_local(|| layer.run(true));
}

#[divan::bench(args = SHAPES)]
fn unpacked(bencher: divan::Bencher, shape: (usize, usize, usize)) {
    let mut layer = Layer::new(shape);
    bencher
        .counter(divan::counter::ItemsCount::new(2 * shape.0 * shape.1 * shape.2))
        .bench_local(|| layer.run(false));
}
