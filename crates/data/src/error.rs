//! What can go wrong while reading pictures, text and datasets.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is no sound picture within the limits.
    #[error("{path}: {source}")]
    Picture {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: crate::image::PictureError,
    },
    /// A vocabulary, text or template is not as it must be.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// A source of samples is not as it must be.
    #[error(transparent)]
    Dataset(#[from] crate::dataset::DatasetError),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
