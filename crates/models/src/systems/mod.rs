//! Systems composed of the parts.

pub mod batch;
pub mod blip;
pub mod blip2;
pub mod blip2_pretraining;
pub mod blip2_writing;
pub mod blip_pretraining;
pub mod clip;
pub mod composition;
pub mod flamingo;
pub mod lit;
pub mod llava;
pub mod matcher;
pub mod minigpt4;
pub mod mplug_owl;
mod openflamingo;
pub mod qwen_vl;
pub mod talker;
pub mod visualglm;
pub mod writer;
pub mod xcomposer;
