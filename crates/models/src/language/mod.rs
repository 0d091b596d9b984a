//! Language models and text towers.

pub mod clip_text;
