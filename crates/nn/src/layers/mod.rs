//! Layers.

mod attention;
mod embedding;
mod layer_norm;
mod linear;
mod mlp;

pub use attention::SelfAttention;
pub use embedding::Embedding;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use mlp::Mlp;
