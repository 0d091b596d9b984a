//! Systems composed of the parts.

pub mod blip2;
pub mod clip;
pub mod lit;
