//! Connectors: image tokens to what a language model reads.

pub mod qformer;
