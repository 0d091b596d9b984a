//! What can go wrong in a metric.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to choose from.
    #[error("no labels: give at least one label to classify by")]
    NoLabels,
    /// There is nothing to put labels into.
    #[error("no templates: give at least one, such as \"{{}}\"")]
    NoTemplates,
    /// Scores do not fit the items they rank.
    #[error("{metric}: expected {expected} values, got {got}")]
    Length {
        /// The metric.
        metric: &'static str,
        /// What it needs.
        expected: usize,
        /// What it got.
        got: usize,
    },
    /// A template is not as it must be.
    #[error(transparent)]
    Text(#[from] ocelli_data::text::TextError),
    /// An operation failed.
    #[error(transparent)]
    Tensor(#[from] ocelli_tensor::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
