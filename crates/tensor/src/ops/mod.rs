//! The operations: methods of [`crate::Tensor`], each with its gradient.

pub mod attention;
mod elementwise;
mod embedding;
pub mod linear;
pub mod loss;
mod norm;
mod rearrange;
