//! Reading of vocabulary files: limits on their size, and errors that name them.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::{Result, TextError};

/// Largest vocabulary or merge file, also after unpacking: 64 MiB. The largest published
/// vocabularies have about 20 MiB.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// The content of a file of at most [`MAX_FILE_BYTES`].
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| TextError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    check_size(&bytes, &path.display().to_string())?;
    Ok(bytes)
}

/// As [`read_file`], or nothing when there is no such file.
pub(super) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.is_file() { read_file(path).map(Some) } else { Ok(None) }
}

/// Refuses more than [`MAX_FILE_BYTES`].
fn check_size(bytes: &[u8], file: &str) -> Result<()> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(TextError::FileTooLarge { file: file.to_owned(), limit: MAX_FILE_BYTES });
    }
    Ok(())
}

/// `bytes` as text.
pub(super) fn utf8<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str> {
    check_size(bytes, file)?;
    std::str::from_utf8(bytes)
        .map_err(|cause| TextError::NotUtf8 { file: file.to_owned(), offset: cause.valid_up_to() })
}

/// `bytes` as JSON of the given type.
pub(super) fn parse_json<T: DeserializeOwned>(bytes: &[u8], file: &str) -> Result<T> {
    check_size(bytes, file)?;
    serde_json::from_slice(bytes)
        .map_err(|source| TextError::Json { file: file.to_owned(), source })
}
