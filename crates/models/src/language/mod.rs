//! Language models and text towers.

pub mod bert;
pub mod causal;
pub mod clip_text;
pub mod llama;
