//! What can go wrong between the files of a dataset and its batches.

use std::path::PathBuf;

use crate::image::PictureError;

/// An error of the dataset module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// A file or folder could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// There is nothing at the path of a source.
    #[error("there is no {path}: fetch it as the first lines of the recipe say, or correct data")]
    NotThere {
        /// As configured.
        path: String,
    },
    /// The path does not say what it holds.
    #[error(
        "{path} is no folder and ends in none of .csv, .tsv, .jsonl, .tar: set kind to folder, \
         table, json_lines or shards"
    )]
    UnknownKind {
        /// As configured.
        path: String,
    },
    /// A value of the configuration is out of range.
    #[error("{field} is {found}, expected {expected}: edit the recipe")]
    Config {
        /// The key.
        field: &'static str,
        /// The value.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The braces of a shard path cannot be expanded.
    #[error("{path}: {problem}: write ranges as train-{{0000..0042}}.tar, unions as a.tar::b.tar")]
    ShardNames {
        /// As configured.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A tar shard is broken.
    #[error("{path}: {source}")]
    Tar {
        /// The shard.
        path: PathBuf,
        /// What is wrong with it.
        source: TarError,
    },
    /// A table lacks a column.
    #[error(
        "{path} has no column {column:?}, only {found:?}: set separator, picture_key \
         or caption_keys"
    )]
    NoColumn {
        /// The table.
        path: PathBuf,
        /// The column.
        column: String,
        /// The header.
        found: Vec<String>,
    },
    /// A row of a table is not as the header says.
    #[error("{path} line {line}: {problem}: correct the row or set separator")]
    Row {
        /// The table.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What the parser found.
        problem: String,
    },
    /// A line or member is not the JSON object it must be.
    #[error("{place}: not a JSON object ({problem}): correct or remove it")]
    Json {
        /// The file with its line, or the shard with its member.
        place: String,
        /// What the parser found.
        problem: String,
    },
    /// A field has a value of the wrong kind.
    #[error("{place}: {field:?} is {found}, expected {expected}: correct it or name another key")]
    Field {
        /// The file with its line, or the shard with its member.
        place: String,
        /// The key.
        field: String,
        /// The value, as JSON.
        found: String,
        /// The kinds that are understood.
        expected: &'static str,
    },
    /// A line, row or member is longer than any sensible one.
    #[error("{place} is longer than {limit} bytes: check that the file is what it should be")]
    TooLong {
        /// Where.
        place: String,
        /// In bytes.
        limit: u64,
    },
    /// A source has nothing to give.
    #[error("{path}: no sample with a picture ({found}): check the path and the where filter")]
    NoSamples {
        /// As configured.
        path: String,
        /// What was there instead.
        found: String,
    },
    /// More samples than can be numbered.
    #[error("an epoch of {samples} samples is over the limit of {limit}: lower the weights")]
    TooManySamples {
        /// In an epoch of all sources.
        samples: u64,
        /// Allowed.
        limit: u64,
    },
    /// Some labels of a mix are numbers and some are names.
    #[error("{path}: the label {label} is a {found} where others are {others}: use one of the two")]
    MixedLabels {
        /// The source.
        path: String,
        /// A label.
        label: String,
        /// What it is.
        found: &'static str,
        /// What the others are.
        others: &'static str,
    },
    /// A class that was not there when the classes were fixed.
    #[error("{path}: class {class:?} is none of the {known} known classes: rename or remove it")]
    UnknownClass {
        /// The source.
        path: String,
        /// Its name.
        class: String,
        /// How many there are.
        known: usize,
    },
    /// A picture cannot be used.
    #[error("{place}: {source}")]
    Picture {
        /// The file, or the shard with its member.
        place: String,
        /// What is wrong with it.
        source: PictureError,
    },
    /// A sample lacks what the training needs.
    #[error("{place} has no {what}: name the keys that hold one, or filter with where")]
    NoTarget {
        /// The file, or the shard with its member.
        place: String,
        /// A caption or a label.
        what: &'static str,
    },
    /// The system gives no more threads.
    #[error("cannot start a thread of the loader: {0}: lower threads")]
    Thread(std::io::Error),
    /// Too many samples were left out.
    #[error(
        "{skipped} broken samples, {limit} allowed: repair the dataset or allow more; the last: {last}"
    )]
    TooManyBroken {
        /// So far.
        skipped: u64,
        /// Allowed.
        limit: u64,
        /// What was wrong with the last one.
        last: Box<DatasetError>,
    },
    /// A saved position belongs to other data.
    #[error(
        "the saved data position has {field} = {saved}, this run has {now}: resume with the data \
         and the seed of the first run"
    )]
    OtherData {
        /// What differs.
        field: &'static str,
        /// As saved.
        saved: u64,
        /// Of this loader.
        now: u64,
    },
}

/// What is wrong with a tar archive. Offsets are in bytes from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// Reading failed.
    #[error("cannot read the archive at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// The archive ends inside a header.
    #[error("the archive ends inside the header at byte {offset}: fetch it again")]
    CutHeader {
        /// Where the header begins.
        offset: u64,
    },
    /// The checksum is wrong: these bytes are no header.
    #[error(
        "no tar header at byte {offset} (checksum {found}, expected {expected}): fetch it again, unpacked from .gz"
    )]
    Checksum {
        /// Where.
        offset: u64,
        /// As stored.
        found: u64,
        /// Of the bytes.
        expected: u64,
    },
    /// A number of a header is none.
    #[error("the {field} in the header at byte {offset} is no number: fetch the archive again")]
    Number {
        /// Where the header begins.
        offset: u64,
        /// Which.
        field: &'static str,
    },
    /// A member reaches past the end of the archive.
    #[error(
        "{name:?} at byte {offset} has {size} bytes, the archive ends {left} bytes later: fetch it again"
    )]
    CutMember {
        /// Of the member.
        name: String,
        /// Where its bytes begin.
        offset: u64,
        /// Declared.
        size: u64,
        /// There.
        left: u64,
    },
    /// A long name or a block of attributes is larger than any sensible one.
    #[error(
        "the attributes at byte {offset} take {size} bytes, over the limit of {limit}: pack the archive anew"
    )]
    Attributes {
        /// Where they begin.
        offset: u64,
        /// Declared.
        size: u64,
        /// Allowed.
        limit: u64,
    },
    /// A block of attributes breaks the rules of its format.
    #[error("the attributes at byte {offset} are malformed: pack the archive anew")]
    MalformedAttributes {
        /// Where they begin.
        offset: u64,
    },
    /// A sparse file, which has no bytes of its own to read.
    #[error("{name:?} at byte {offset} is a sparse file: pack the archive without --sparse")]
    Sparse {
        /// Of the member.
        name: String,
        /// Where its header begins.
        offset: u64,
    },
}

/// A result of the dataset module.
pub type Result<T> = std::result::Result<T, DatasetError>;
