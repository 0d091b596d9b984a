//! What the data of a source were, in a line: enough to notice that they changed, cheap for
//! terabytes.

use std::{
    fmt::Write,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    config::{Kind, SourceConfig},
    error::{DatasetError, Result},
    folder::Folder,
};

/// Bytes of all files together that are looked at.
const LOOKED_AT: u64 = 1 << 20;
/// Files that are looked into, evenly spread over all of them.
const LOOKED_INTO: usize = 1 << 10;

/// The files of a source: how many, how large, and a hash over
///
/// - the name and the size of every file in order: the pictures of a folder, the shards, or the table
///   or JSON lines (but not the pictures that these name);
/// - the first bytes of up to 1,024 of them, 1 MiB in all: 1 MiB of a single file, 1 KiB of each of
///   1,024 shards.
///
/// A change that keeps names and sizes may therefore go unnoticed, any other does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// As configured.
    pub path: String,
    /// Number of files.
    pub files: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

impl SourceConfig {
    /// The fingerprint of the files as they are now.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let (root, names) = match self.kind()? {
            Kind::Folder => (PathBuf::from(&self.path), Folder::open(self)?.0.into_files()),
            _ => (PathBuf::new(), self.paths()?.into_iter().map(Into::into).collect()),
        };
        let every = names.len().div_ceil(LOOKED_INTO).max(1);
        let share = LOOKED_AT / names.len().clamp(1, LOOKED_INTO) as u64;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        for (i, name) in names.iter().enumerate() {
            let path = root.join(name);
            let io = |source| DatasetError::Io { path: path.clone(), source };
            let size = path.metadata().map_err(io)?.len();
            bytes += size;
            let name = name.to_string_lossy();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(size.to_le_bytes());
            if i % every == 0 {
                hash.update(start_of(&path, share).map_err(io)?);
            }
        }
        let mut sha256 = String::new();
        for byte in hash.finalize() {
            let _ = write!(sha256, "{byte:02x}"); // A string takes everything.
        }
        Ok(Fingerprint { path: self.path.clone(), files: names.len() as u64, bytes, sha256 })
    }
}

fn start_of(path: &Path, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn names_sizes_and_first_bytes_count() {
        let root = std::env::temp_dir().join(format!("ocelli-fingerprint-{}", std::process::id()));
        fs::create_dir_all(root.join("cat")).unwrap();
        let (a, b) = (root.join("cat/a.png"), root.join("cat/b.png"));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "two").unwrap();
        fs::write(root.join("lines.jsonl"), "{}\n").unwrap();
        let folder = SourceConfig::new(root.to_str().unwrap());
        let first = folder.fingerprint().unwrap();
        assert_eq!((first.files, first.bytes, first.sha256.len()), (2, 6, 64));
        assert_eq!(folder.fingerprint().unwrap(), first);
        let mut seen = vec![first.sha256];
        let mut changed = || {
            let now = folder.fingerprint().unwrap().sha256;
            assert!(!seen.contains(&now));
            seen.push(now);
        };
        fs::write(&a, "One").unwrap();
        changed();
        fs::write(&a, "ones").unwrap();
        changed();
        fs::rename(&b, root.join("cat/c.png")).unwrap();
        changed();
        let lines = SourceConfig::new(root.join("lines.jsonl").to_str().unwrap());
        assert_eq!(lines.fingerprint().unwrap().bytes, 3);
        assert!(SourceConfig::new("nowhere.jsonl").fingerprint().is_err());
        fs::remove_dir_all(&root).unwrap();
    }
}
