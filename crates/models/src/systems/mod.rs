//! Systems composed of the parts.

pub mod clip;
