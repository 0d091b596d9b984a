//! Text: tokenizers, repair of text, prompt templates, class names.

mod bpe;
mod clip_bpe;
mod clip_files;
mod clip_words;
mod error;
mod files;
mod fix;
mod fix_encoding;
mod fix_tables;
mod html;
mod vocabulary;
mod wordpiece;
mod zero_shot;

pub use clip_bpe::{Behaviour, ClipTokenizer, SpecialTokens, Truncate};
pub use error::{Result, TextError};
pub use fix::fix_text;
pub use vocabulary::{VocabularyFiles, train_vocabulary};
pub use wordpiece::{BertSpecialTokens, BertTokenizer, TokenBatch};
pub use zero_shot::{ClassNames, Ensemble, Language, prompts, templates};
