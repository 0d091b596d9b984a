//! Products and picture operations give the same bits whatever the number of threads.
//!
//! The pool takes its size once per process, so this program runs itself with other sizes.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_kernels::batch_norm::{self, Affine, BatchNorm, Gradients, Statistics};
use ocelli_kernels::conv2d::{self, Conv2d, Padding};
use ocelli_kernels::gemm::{Epilogue, Lhs, Rhs, matmul};
use ocelli_kernels::group_norm::{self, GroupNorm};
use ocelli_kernels::local_attention::{self, LocalAttention, Relative};
use ocelli_kernels::narrow::matmul_bf16;
use std::process::Command;

const ASK: &str = "OCELLI_TEST_DIGEST";

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 131) % 1009) as f32 / 504.0 - 1.0).collect()
}

/// FNV-1a over the bits of every result.
#[derive(Default)]
struct Digest(u64);

impl Digest {
    fn add(&mut self, results: &[&[f32]]) {
        for value in results.iter().flat_map(|r| r.iter()) {
            self.0 = (self.0 ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01B3);
        }
    }
}

fn digest() -> u64 {
    let mut digest = Digest::default();
    for (side, kernel, stride) in [(14, 3, 1), (21, 3, 2), (14, 1, 1)] {
        let conv = Conv2d {
            batch: 3,
            in_channels: 100,
            img_h: side,
            img_w: side,
            out_channels: 130,
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: Padding::uniform(kernel / 2),
        };
        let (x, w) = (values(conv.input_len(), 1), values(130 * conv.fan_in(), 2));
        let (mut y, g) = (vec![0.0; conv.output_len()], values(conv.output_len(), 3));
        conv2d::forward(&conv, &x, &w, None, &mut y);
        let (mut dx, mut dw, mut db) = (x.clone(), w.clone(), vec![0.0; 130]);
        conv2d::grad_input(&conv, &w, &g, &mut dx);
        conv2d::grad_weight(&conv, &x, &g, &mut dw);
        conv2d::grad_bias(&conv, &g, &mut db);
        digest.add(&[&y, &dx, &dw, &db]);
    }

    // Rows are dealt by the number of threads; the inner dimension goes in blocks.
    let (rows, cols, inner) = (200, 384, 1536);
    let (x, w) = (values(rows * inner, 20), values(cols * inner, 21));
    for product in [matmul, matmul_bf16] {
        let mut y = vec![0.0; rows * cols];
        let rhs = Rhs::Transposed(&w, inner);
        product((rows, cols, inner), Lhs::rows(&x, inner), rhs, &mut y, cols, Epilogue::default());
        digest.add(&[&y]);
    }

    let (gamma, beta) = (values(24, 4), values(24, 5));
    let affine = Affine { gamma: &gamma, beta: &beta };
    let (mut mean, mut variance) = (vec![0.0; 24], vec![0.0; 24]);
    let (mut dgamma, mut dbeta) = (vec![0.0; 24], vec![0.0; 24]);
    let sizes = BatchNorm { batch: 5, channels: 24, pixels: 77, relu: true };
    let (x, g) = (values(sizes.len(), 6), values(sizes.len(), 7));
    let (mut y, mut dx) = (x.clone(), x.clone());
    batch_norm::forward_train(&sizes, &x, affine, 1e-5, &mut mean, &mut variance, &mut y);
    let statistics = Statistics { mean: &mean, variance: &variance, eps: 1e-5 };
    let gradients = Gradients { input: &mut dx, gamma: &mut dgamma, beta: &mut dbeta };
    batch_norm::backward(&sizes, &x, affine, statistics, true, &g, gradients);
    digest.add(&[&y, &mean, &variance, &dx, &dgamma, &dbeta]);

    let sizes =
        GroupNorm { batch: 5, groups: 4, group_channels: 6, pixels: 77, eps: 1e-5, relu: true };
    group_norm::forward(&sizes, &x, affine, &mut y);
    let gradients = Gradients { input: &mut dx, gamma: &mut dgamma, beta: &mut dbeta };
    group_norm::backward(&sizes, &x, affine, &g, gradients);
    digest.add(&[&y, &dx, &dgamma, &dbeta]);

    let sizes = LocalAttention {
        batch: 3,
        heads: 3,
        grid_h: 7,
        grid_w: 6,
        head_dim: 20,
        window: (5, 3),
        scale: 0.2,
    };
    let qkv = values(3 * sizes.output_len(), 8);
    let (rows, cols) = (values(sizes.rows_len(), 9), values(sizes.cols_len(), 10));
    let relative = Relative { rows: &rows, cols: &cols };
    let (mut y, g) = (vec![0.0; sizes.output_len()], values(sizes.output_len(), 11));
    let (mut dqkv, mut drows, mut dcols) = (qkv.clone(), rows.clone(), cols.clone());
    local_attention::forward(&sizes, &qkv, relative, &mut y);
    let gradients =
        local_attention::Gradients { qkv: &mut dqkv, rows: &mut drows, cols: &mut dcols };
    local_attention::backward(&sizes, &qkv, relative, &g, gradients);
    digest.add(&[&y, &dqkv, &drows, &dcols]);
    digest.0
}

#[test]
#[allow(clippy::print_stdout)] // The run that asked reads it.
fn the_number_of_threads_changes_no_bit() {
    if std::env::var_os(ASK).is_some() {
        println!("digest {:x}", digest());
        return;
    }
    let with_threads = |threads: &str| {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_number_of_threads_changes_no_bit", "--nocapture"])
            .envs([(ASK, "1"), ("OCELLI_THREADS", threads)])
            .output()
            .unwrap();
        let text = String::from_utf8(run.stdout).unwrap();
        let at = text.find("digest ").unwrap_or_else(|| panic!("no digest in {text}"));
        text[at..].split_whitespace().nth(1).unwrap().to_owned()
    };
    let one = with_threads("1");
    for threads in ["2", "3", "7"] {
        assert_eq!(with_threads(threads), one, "{threads} threads");
    }
}
