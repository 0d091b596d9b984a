//! Connectors: image tokens to what a language model reads.

pub mod projector;
pub mod qformer;
pub mod splice;
