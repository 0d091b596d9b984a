//! One file per model: vision towers, language models and the systems that papers build from them.
//!
//! ```text
//! vision/    pixels -> image tokens
//! connector/ image tokens -> what a language model reads
//! language/  tokens -> features, logits
//! generate/  logits -> text
//! systems/   what composes them: CLIP, LiT
//! ```

pub mod connector;
pub mod cost;
mod error;
pub mod generate;
pub mod language;
mod load;
mod pass;
pub mod systems;
pub mod vision;

pub use error::{Error, Result};
pub use load::{
    Family, Files, HeadCounts, Inventory, Model, Need, Opened, PictureEncoder, Published, Source,
    Work, WrittenInBytes, inventory, published, tokenizer,
};
pub use pass::Pass;
