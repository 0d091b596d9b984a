//! Datasets: image folders, tables, JSON lines, tar shards; shuffling, batching and exact resume.
//!
//! A [`Dataset`] mixes sources and reads one sample at a time by its number; in memory it keeps an
//! index alone. A [`Sampler`] puts the samples of an epoch in order, and a [`Loader`] turns them
//! into batches on background threads. Everything random is a function of the seed, the epoch and
//! the position in it, so neither the number of threads nor an interruption changes a batch.
//! Texts stay strings: tokens are the trainer's business.

mod augment;
mod batches;
mod classes;
mod config;
mod draw;
mod error;
mod fields;
mod fingerprint;
mod folder;
mod json_lines;
mod loader;
mod mix;
mod order;
mod shard_names;
mod shards;
mod small;
mod source;
mod table;
mod tar;
mod worker;

pub use augment::AugmentConfig;
pub use batches::Batches;
pub use config::{Kind, SourceConfig};
pub use error::{DatasetError, Result, TarError};
pub use fingerprint::Fingerprint;
pub use loader::{Batch, CacheConfig, Loader, LoaderConfig, OnBroken, Targets, View};
pub use mix::Dataset;
pub use order::{DataState, Sampler};
pub use shard_names::shard_names;
pub use source::{Annotation, Sample};
pub use tar::{Member, Members};
