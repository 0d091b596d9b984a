//! Systems composed of the parts.

pub mod clip;
pub mod lit;
