//! Vision towers: pixels to image tokens.

pub mod clip_resnet;
pub mod clip_vit;
pub mod eva_vit;
pub mod local_vit;
pub mod nfnet;
pub mod position;
pub mod qwen_vit;
pub mod resnet_v2;
pub mod timm_vit;
pub mod vit;
