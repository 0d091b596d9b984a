//! Images, text tokenizers, prompt templates, datasets, shards and batching; knows nothing of models.

pub mod dataset;
mod error;
pub mod image;
pub mod text;

pub use error::{Error, Result};
