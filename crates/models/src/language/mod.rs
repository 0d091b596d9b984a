//! Language models and text towers.

pub mod bert;
pub mod causal;
pub mod chatglm;
pub mod clip_text;
pub mod gpt2;
pub mod gpt_neox;
pub mod llama;
pub mod med;
pub mod mpt;
pub mod opt;
pub mod qwen;
pub mod t5;
