//! Layers.

mod attention;
mod batch_norm;
mod conv2d;
mod dropout;
mod embedding;
mod gated_mlp;
mod group_norm;
mod layer_norm;
mod linear;
mod local_attention;
mod memory_attention;
mod mlp;
mod rms_norm;
mod scaled_conv2d;

pub use attention::{Attention, AttentionSizes, SelfAttention, Turns};
pub use batch_norm::{BatchNorm, NormStatistics};
pub use conv2d::Conv2d;
pub use dropout::Dropout;
pub use embedding::Embedding;
pub use gated_mlp::GatedMlp;
pub use group_norm::GroupNorm;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use local_attention::LocalAttention;
pub use memory_attention::{MemoryAttention, MemoryAttentionSizes};
pub use mlp::Mlp;
pub use rms_norm::RmsNorm;
pub use scaled_conv2d::{ScaledConv2d, ScaledConv2dSizes};
