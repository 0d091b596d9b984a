//! What can go wrong in training.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A recipe is not as it must be.
    #[error("{file}: {problem}")]
    Recipe {
        /// The recipe.
        file: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// An override is not as it must be.
    #[error("{change}: {problem}")]
    Override {
        /// As given.
        change: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The run would need more memory than there is.
    #[error(
        "training needs about {} MiB, {} MiB are available; lower train.micro_batch_size, or set \
         train.grad_checkpointing", needed.div_ceil(1 << 20), available >> 20
    )]
    Memory {
        /// In bytes, by the estimate that a dry run prints.
        needed: u64,
        /// In bytes.
        available: u64,
    },
    /// A key of a recipe does not fit the model or the data.
    #[error("{key}: {problem}")]
    Unfit {
        /// The key, such as `model.variant`.
        key: &'static str,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The checkpoint to start from does not fit the model.
    #[error("{}: does not fit the model: {}; check model.variant and model.from", path.display(), problems.join(", "))]
    Start {
        /// The checkpoint.
        path: PathBuf,
        /// Parameters that are missing or have another shape.
        problems: Vec<String>,
    },
    /// A loss or gradient became NaN or infinite.
    #[error(
        "step {step}: the {what} is not finite (first seen in {parameter}); lower optim.lr, add \
         warm-up or set optim.max_grad_norm, and resume from the last checkpoint"
    )]
    NotFinite {
        /// Loss, gradient or weight.
        what: &'static str,
        /// From 1.
        step: u64,
        /// The first parameter with such values.
        parameter: String,
    },
    /// The moments of an optimiser belong to another model.
    #[error(
        "optimizer.safetensors: {name} has {found} values, expected {expected}; resume with the recipe of the first run"
    )]
    Moments {
        /// The tensor.
        name: String,
        /// Of the parameter.
        expected: usize,
        /// Of the file.
        found: usize,
    },
    /// A file of a checkpoint is not as this program writes it.
    #[error("{}: {problem}; remove this checkpoint and resume from an earlier one", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The run folder holds another run.
    #[error("{} holds a run of another recipe ({section} differs); choose another name or remove it", path.display())]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// The section that differs.
        section: &'static str,
    },
    /// A plot could not be drawn.
    #[error("plot.svg: {problem}")]
    Plot {
        /// What is wrong with it.
        problem: String,
    },
    /// The data ended or its threads stopped early.
    #[error("step {step}: the data ended early; check data.sources")]
    NoMoreData {
        /// From 1.
        step: u64,
    },
    /// Data could not be read.
    #[error(transparent)]
    Dataset(#[from] ocelli_data::dataset::DatasetError),
    /// A vocabulary or text is not as it must be.
    #[error(transparent)]
    Text(#[from] ocelli_data::text::TextError),
    /// A metric could not be computed.
    #[error(transparent)]
    Eval(#[from] ocelli_eval::Error),
    /// A model could not be built or run.
    #[error(transparent)]
    Model(#[from] ocelli_models::Error),
    /// Weights do not fit.
    #[error(transparent)]
    Load(#[from] ocelli_nn::LoadError),
    /// A weights file could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] ocelli_nn::checkpoint::Error),
    /// An operation failed.
    #[error(transparent)]
    Tensor(#[from] ocelli_tensor::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
