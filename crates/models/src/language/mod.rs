//! Language models and text towers.

pub mod bert;
pub mod clip_text;
