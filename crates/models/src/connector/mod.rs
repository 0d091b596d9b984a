//! Connectors: image tokens to what a language model reads.

pub mod abstractor;
pub mod flamingo;
pub mod gated_xattn;
pub mod perceiver;
pub mod position_resampler;
pub mod projector;
pub mod qformer;
pub mod splice;
