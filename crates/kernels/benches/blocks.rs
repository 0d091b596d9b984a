//! The linear layers of a language model of 1.1 billion weights in blocks: one token, whose time is
//! that of reading them from memory, and a prompt of 256, whose time is that of the arithmetic.
//!
//! Run: `cargo bench -p ocelli-kernels --bench blocks [-- ROWS..]`.
#![allow(clippy::print_stdout)] // A bench prints its figures.

use ocelli_kernels::gemm::{Epilogue, Lhs, Rhs, matmul};
use ocelli_kernels::quant::{BLOCK, BlockKind, Blocks, PackedBlocks};
use ocelli_kernels::{Buffer, Isa, pool};
use std::hint::black_box;
use std::time::Instant;

/// Inputs and outputs of the layers of a block: queries, keys, values, output, gate, up, down.
const LAYERS: [(usize, usize); 7] = [
    (2048, 2048),
    (2048, 256),
    (2048, 256),
    (2048, 2048),
    (2048, 5632),
    (2048, 5632),
    (5632, 2048),
];
const DEPTH: usize = 22;

fn layer(kind: BlockKind, (inputs, outputs): (usize, usize)) -> PackedBlocks {
    let mut bytes: Vec<u8> =
        (0..outputs * inputs / BLOCK * kind.bytes()).map(|i| (i * 7919 % 251) as u8).collect();
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        block[..2].copy_from_slice(&0x2000_u16.to_le_bytes()); // 2^-7 as an f16.
        if kind == BlockKind::Q4_1 {
            block[2..4].copy_from_slice(&0xa800_u16.to_le_bytes());
        }
    }
    PackedBlocks::new(Blocks::new(kind, outputs, inputs, &bytes).expect("whole blocks"))
}

/// Gigabytes per second that all threads read from memory, 512 MB in turn.
fn memory_rate() -> f64 {
    let data = Buffer::<f32>::zeroed(128 << 20);
    let tasks = 64 * pool::threads();
    let len = data.len() / tasks;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        pool::parallel_for(tasks, |t| {
            let mut sums = [0.0_f32; 64];
            for chunk in data[t * len..][..len].as_chunks::<64>().0 {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum += x;
                }
            }
            black_box(sums);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (data.len() * 4) as f64 / best / 1e9
}

fn main() {
    let mut asked: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    if asked.is_empty() {
        asked = vec![1, 4, 16, 256];
    }
    println!("{} threads, {:?}, memory {:.0} GB/s", pool::threads(), Isa::best(), memory_rate());
    println!("{:>6} {:>6} {:>10} {:>8} {:>8}", "kind", "rows", "ms", "GB/s", "Gop/s");
    for kind in [BlockKind::Q4_0, BlockKind::Q4_1, BlockKind::Q8_0] {
        let layers: Vec<PackedBlocks> =
            (0..DEPTH).flat_map(|_| LAYERS).map(|shape| layer(kind, shape)).collect();
        let bytes: usize = layers.iter().map(PackedBlocks::bytes).sum();
        for &rows in &asked {
            let x: Vec<f32> =
                (0..rows * 5632).map(|i| (i * 7919 % 2003) as f32 / 1e3 - 1.0).collect();
            let mut y = vec![0.0; rows * 5632];
            let mut times: Vec<f64> = (0..7)
                .map(|_| {
                    let start = Instant::now();
                    for layer in &layers {
                        let (k, n) = (layer.k(), layer.n());
                        let (lhs, rhs) = (Lhs::rows(&x, k), Rhs::Blocks(layer));
                        matmul((rows, n, k), lhs, rhs, &mut y, n, Epilogue::default());
                        black_box(&y);
                    }
                    start.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let weights: usize = layers.iter().map(|l| l.k() * l.n()).sum();
            println!(
                "{:>6} {rows:>6} {:>10.1} {:>8.1} {:>8.0}",
                format!("{kind:?}"),
                1e3 * times[3],
                bytes as f64 / times[3] / 1e9,
                (2 * rows * weights) as f64 / times[3] / 1e9
            );
        }
    }
}
