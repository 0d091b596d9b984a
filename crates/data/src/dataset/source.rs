//! What every kind of source gives: annotations and pictures by number.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use serde_json::Value;

use super::error::{DatasetError, Result};
use crate::image::{Limits, PictureError};

/// Longest line, row or text member, in bytes.
pub(super) const MAX_TEXT: u64 = 16 << 20;

/// What is known about a picture.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Annotation {
    /// Name of the sample inside its source.
    pub key: String,
    /// Captions, one list for each caption key that has any.
    pub captions: Vec<Vec<String>>,
    /// Index of the class.
    pub label: Option<u32>,
    /// The row, line or JSON member; null when there is none.
    pub meta: Value,
}

/// A picture with its annotation.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Caption, class and the rest.
    pub annotation: Annotation,
    /// The bytes of the picture file, any format of [`crate::image`].
    pub picture: Vec<u8>,
}

/// Samples by number, read when asked for. Labels are with the mix.
pub(super) trait Source: Send + Sync {
    /// The annotation of a sample, without its label.
    fn annotation(&self, index: usize) -> Result<Annotation>;

    /// The bytes of its picture file.
    fn picture(&self, index: usize) -> Result<Vec<u8>>;

    /// Where the sample is, for messages: a file, with the line or member.
    fn place(&self, index: usize) -> String;
}

/// A range of bytes in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Span {
    /// Its bytes. Files are opened for each read: that costs microseconds and no limit on the
    /// number of shards.
    pub(super) fn read(self, path: &Path) -> Result<Vec<u8>> {
        let io = |source| DatasetError::Io { path: path.to_path_buf(), source };
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let mut bytes = vec![0; usize::try_from(self.length).unwrap_or(usize::MAX)];
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// The bytes of a picture, unless they are more than a picture may have.
    pub(super) fn read_picture(
        self,
        path: &Path,
        place: impl FnOnce() -> String,
    ) -> Result<Vec<u8>> {
        check_length(self.length, place)?;
        self.read(path)
    }
}

/// The bytes of a picture file.
pub(super) fn read_picture(path: &Path) -> Result<Vec<u8>> {
    let io = |source| DatasetError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let place = || path.display().to_string();
    check_length(length, place)?;
    let mut bytes = Vec::with_capacity(length as usize);
    let limit = Limits::default().max_bytes;
    // What is no regular file has no length: one byte past the limit is enough to refuse it.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    check_length(bytes.len() as u64, place)?;
    Ok(bytes)
}

fn check_length(bytes: u64, place: impl FnOnce() -> String) -> Result<()> {
    let limit = Limits::default().max_bytes;
    if bytes > limit {
        let source = PictureError::TooManyBytes { bytes, limit };
        return Err(DatasetError::Picture { place: place(), source });
    }
    Ok(())
}
