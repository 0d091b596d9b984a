//! What can go wrong between a model's name and its tensors. Every message names the file, the
//! tensor where there is one, and what to do next.

use std::path::PathBuf;

/// A checkpoint could not be found, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}; check the path and its permissions", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model directory holds no file that this crate reads.
    #[error(
        "{}: no checkpoint found, looked for {looked_for}; give the path of a weights file",
        dir.display()
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// The names that were looked for.
        looked_for: String,
    },
    /// A model directory holds several files of one kind and nothing says which is meant.
    #[error(
        "{}: several checkpoints found ({}); give the path of one of them",
        dir.display(), found.join(", ")
    )]
    Ambiguous {
        /// The directory.
        dir: PathBuf,
        /// The names of the candidates, sorted.
        found: Vec<String>,
    },
    /// The file's contents contradict its format.
    #[error("{}: damaged {format} file: {reason}; fetch or write the file again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format that was being read.
        format: &'static str,
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// The file is of a kind that holds weights, but not one that this crate reads.
    #[error("{}: {found} cannot be read here; {action}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What to do instead.
        action: &'static str,
    },
    /// A pickle names a class or function outside the short list of harmless ones.
    #[error(
        "{}: refused the pickled class {class}: only tensors and plain containers are read, and \
         nothing was executed; if you trust the file, load it in Python and save its state_dict \
         as safetensors",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// `module.name` as the pickle spells it.
        class: String,
    },
    /// The file asks for more than a stated limit.
    #[error("{}: {what} is {found}, the limit is {limit}; use a smaller file or safetensors", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The quantity that is limited.
        what: &'static str,
        /// What the file asks for.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// One tensor's description does not fit its data.
    #[error("{}: tensor {tensor}: {reason}; fetch or write the file again", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// One tensor's element type is not read here, or not by the call that was made.
    #[error(
        "{}: tensor {tensor}: element type {found} where {expected} is needed; convert the \
         tensor and save the file again",
        path.display()
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The element type in the file's own words.
        found: String,
        /// The element types that would do.
        expected: &'static str,
    },
    /// A tensor does not belong to those that it was put together with.
    #[error("{}: tensor {tensor}: {reason}; {action}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What the other files ask for, and what is there.
        reason: String,
        /// What to do.
        action: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{}: no tensor named {tensor}; list the names with `ocelli model info`", path.display())]
    MissingTensor {
        /// The first file of the checkpoint.
        path: PathBuf,
        /// The name that was asked for.
        tensor: String,
    },
    /// Two files of one checkpoint hold a tensor of the same name.
    #[error(
        "{}: tensor {tensor} is also in {}; keep it in one file only",
        path.display(), other.display()
    )]
    Duplicate {
        /// The second file.
        path: PathBuf,
        /// The file that was read first.
        other: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A pickle was read, but holds no tensors where a state dict would be.
    #[error(
        "{}: no state dict found, the top-level keys are [{}]; save the model's state_dict",
        path.display(), keys.join(", ")
    )]
    NoTensors {
        /// The file.
        path: PathBuf,
        /// Up to twenty of the keys that were found.
        keys: Vec<String>,
    },
    /// A model was named by neither an existing path nor a hub id.
    #[error("{spec}: neither an existing path nor a hub id ({reason}); check the spelling")]
    Spec {
        /// What was given.
        spec: String,
        /// Why it cannot be a hub id.
        reason: &'static str,
    },
    /// The hub cache lacks the model and it was not, or could not be, fetched.
    #[error(
        "{repo} at revision {revision} is not in the hub cache {}: {reason}; {action}",
        cache.display()
    )]
    NotCached {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The cache folder that was searched.
        cache: PathBuf,
        /// Why it was not fetched.
        reason: String,
        /// What to do.
        action: &'static str,
    },
    /// The hub refused, or the connection failed.
    #[error("{url}: download failed: {reason}; try again, or give a local path")]
    Download {
        /// What was asked for.
        url: String,
        /// What came back.
        reason: String,
    },
    /// The bytes that arrived are not those the hub announced; they were thrown away.
    #[error("{url}: expected SHA-256 {expected}, got {got}; nothing was kept, try again")]
    Corrupt {
        /// The file that was asked for.
        url: String,
        /// The hub's hash, 64 hex digits.
        expected: String,
        /// The hash of what arrived.
        got: String,
    },
    /// Neither the options nor the environment say where the hub cache is.
    #[error(
        "no hub cache folder: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME are all unset; set one or give --cache-dir"
    )]
    NoCacheDir,
}

/// The result of this module's functions.
pub type Result<T> = std::result::Result<T, Error>;
