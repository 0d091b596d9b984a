//! Images, text tokenizers, prompt templates, datasets, shards and batching; knows nothing of models.

mod error;
pub mod dataset;
pub mod image;
pub mod text;

pub use error::{Error, Result};
