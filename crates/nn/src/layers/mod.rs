//! Layers.

mod attention;
mod batch_norm;
mod conv2d;
mod cross_attention;
mod embedding;
mod group_norm;
mod layer_norm;
mod linear;
mod local_attention;
mod mlp;

pub use attention::SelfAttention;
pub use batch_norm::{BatchNorm, NormStatistics};
pub use conv2d::Conv2d;
pub use cross_attention::CrossAttention;
pub use embedding::Embedding;
pub use group_norm::GroupNorm;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use local_attention::LocalAttention;
pub use mlp::Mlp;
