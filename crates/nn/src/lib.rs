//! Layers, parameters, initialisers, checkpoint formats and name maps.
//!
//! A model is built by asking a [`Builder`] for parameters by our own names; the builder draws them
//! at random or finds them in a checkpoint through the name map of its family ([`Names`]). Layers
//! never know where a value came from.

mod builder;
pub mod checkpoint;
mod held;
mod init;
pub mod layers;
mod names;
mod parameter;

pub use builder::{Axis, Builder, LoadError};
pub use init::Init;
pub use names::{Layout, Name, Names, concat, copy, transpose};
pub use parameter::{Parameter, Parameters};
