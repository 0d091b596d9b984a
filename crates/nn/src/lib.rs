//! Layers, parameters, initialisers, checkpoint formats and name maps.

pub mod checkpoint;
