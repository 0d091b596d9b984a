//! Kernels over slices: every operation of the toolkit as plain loops (the reference) and as
//! vector code that is chosen at run time; no tensors, no gradients bookkeeping.
//!
//! Each operation is a folder: `mod.rs` holds the contract, the formula and the entry points,
//! `reference.rs` the plain loops that the property tests compare with. The vector code is written
//! once over [`simd::Vector`] and compiled for AVX-512, AVX2 and plain Rust.
#![allow(unsafe_code)]
// Vector intrinsics, disjoint writes from several threads, pooled memory.
// A kernel is compiled inside the function that carries its instruction set, so it must be inlined;
// the generic part of a kernel stands next to the loop that calls it.
#![allow(clippy::inline_always, clippy::items_after_statements)]

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod buffer;
pub mod conv2d;
pub mod cross_entropy;
pub mod elementwise;
pub mod gemm;
pub mod group_norm;
pub mod local_attention;
pub mod narrow;
#[cfg(test)]
mod noise;
pub mod norm;
pub mod optimiser;
pub mod pool;
pub mod pooling;
pub mod quant;
pub mod rehearsal;
pub mod rotary;
pub mod simd;

pub use buffer::Buffer;
pub use simd::Isa;
