//! The operations: methods of [`crate::Tensor`], each with its gradient.

pub mod attention;
pub mod batch_norm;
pub mod cache;
pub mod conv;
mod elementwise;
mod embedding;
pub mod group_norm;
pub mod linear;
mod local_attention;
pub mod loss;
mod norm;
mod pooling;
mod rearrange;
pub mod rotary;
