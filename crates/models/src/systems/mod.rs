//! Systems composed of the parts.

pub mod blip2;
pub mod blip2_pretraining;
pub mod clip;
pub mod lit;
