//! What can go wrong while building or running a model.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation got operands that do not fit.
    #[error(transparent)]
    Tensor(#[from] ocelli_tensor::Error),
    /// The weights do not fit the configuration.
    #[error(transparent)]
    Load(#[from] ocelli_nn::LoadError),
    /// A weights file could not be read.
    #[error(transparent)]
    Checkpoint(#[from] ocelli_nn::checkpoint::Error),
    /// A tokenizer or processor file could not be read.
    #[error(transparent)]
    Data(#[from] ocelli_data::Error),
    /// A file of a model directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A configuration has a value that no model can have.
    #[error("{}: {field}: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The field, such as `vision_config.hidden_size`.
        field: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A model directory holds nothing that this version runs.
    #[error(
        "{}: no known model here ({found}); looked for config.json, open_clip_config.json, an \
         OpenAI archive or a ViT .npz",
        path.display()
    )]
    UnknownModel {
        /// The directory or file.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// A prompt leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, {image_tokens} of them from pictures, but the model reads at \
         most {limit}; shorten the text or give fewer pictures"
    )]
    ContextOverflow {
        /// Tokens that a row may have.
        limit: usize,
        /// Tokens of the prompt, with what came before it.
        tokens: usize,
        /// How many of the prompt's tokens come from pictures.
        image_tokens: usize,
    },
    /// A text has other places for a picture than the picture has tokens.
    #[error(
        "the text has {found} places for a picture of {expected} tokens; give {expected} image ids \
         for each picture"
    )]
    ImagePlaces {
        /// Image ids in the text.
        found: usize,
        /// Tokens that a picture is shown as.
        expected: usize,
    },
    /// A text has more or fewer places for pictures than there are pictures.
    #[error(
        "places for pictures in the text: {places}, pictures given: {images}; give one picture for \
             each place"
    )]
    ImageCount {
        /// Places in the text.
        places: usize,
        /// Pictures.
        images: usize,
    },
    /// There is nothing to go on from.
    #[error("prompt {index} has no tokens; give at least one word")]
    EmptyPrompt {
        /// Which of the prompts, from 0.
        index: usize,
    },
    /// The model cannot do what was asked of it.
    #[error("{what} needs {needs}; this model is {is}")]
    Unsuitable {
        /// What was asked.
        what: &'static str,
        /// The kind of model that can do it.
        needs: &'static str,
        /// What the model is.
        is: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
