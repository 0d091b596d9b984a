//! A safetensors file of one tensor whose number of rows is only known at its end, so that results
//! of any number never have to be in memory together.

use crate::failure::Failure;
use ocelli_nn::checkpoint::destination;
use ocelli_tensor::Tensor;
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that the header may take, padded with spaces.
const HEADER_BYTES: usize = 256;

/// The file while it is written; it only appears under its name when it is finished.
pub(crate) struct RowsFile {
    path: PathBuf,
    /// Where the finished file goes: the path with its links followed.
    target: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    name: &'static str,
    /// Lengths of the axes; the first counts rows so far.
    shape: Vec<usize>,
}

impl RowsFile {
    /// Begins the file at `path` with the tensor `name`.
    pub(crate) fn create(path: &Path, name: &'static str) -> Result<Self, Failure> {
        let target = destination(path).map_err(|e| failure(path, &e))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(target.file_name().unwrap_or_default());
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = target.with_file_name(hidden);
        let begin = || {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
            file.write_all(&[b' '; 8 + HEADER_BYTES])?;
            Ok(file)
        };
        let file = begin().map_err(|e| failure(path, &e))?;
        Ok(Self {
            path: path.to_owned(),
            target,
            temporary,
            file: Some(file),
            name,
            shape: Vec::new(),
        })
    }

    /// Appends rows `[n, ...]`; every row has the shape of the first.
    pub(crate) fn add(&mut self, rows: &Tensor) -> Result<(), Failure> {
        let axes = &rows.shape()[..];
        if self.shape.is_empty() {
            self.shape = axes.to_vec();
            self.shape[0] = 0;
        }
        if self.shape[1..] != axes[1..] {
            return Err(Failure::input(format!(
                "{}: a row of shape {:?} among rows of {:?}; this model takes pictures as large as \
                 they are, so give it pictures of one size",
                self.path.display(),
                &axes[1..],
                &self.shape[1..]
            )));
        }
        self.shape[0] += axes[0];
        let file = self.file.as_mut().expect("only finishing takes the file");
        for value in rows.values() {
            file.write_all(&value.to_le_bytes()).map_err(|e| failure(&self.path, &e))?;
        }
        Ok(())
    }

    /// Writes the header and gives the file its name.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let bytes = 4 * self.shape.iter().product::<usize>();
        let info = json!({"dtype": "F32", "shape": self.shape, "data_offsets": [0, bytes]});
        let mut header = serde_json::Map::new();
        header.insert(self.name.to_owned(), info);
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(HEADER_BYTES, b' ');
        let file = self.file.take().expect("only finishing takes the file");
        let end = || {
            let mut file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&(HEADER_BYTES as u64).to_le_bytes())?;
            file.write_all(&header)?;
            file.sync_all()?;
            fs::rename(&self.temporary, &self.target)
        };
        end().map_err(|e| failure(&self.path, &e))
    }
}

impl Drop for RowsFile {
    fn drop(&mut self) {
        // After a finished file there is nothing under this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn failure(path: &Path, error: &std::io::Error) -> Failure {
    Failure::runtime(format!("cannot write {}: {error}", path.display()))
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn a_link_to_something_else_than_a_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, link) = (folder.path().join("socket"), folder.path().join("out"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let failed = format!("{:?}", RowsFile::create(&link, "embeddings").err().unwrap());
        assert!(failed.contains("no regular file"), "{failed}");
        assert!(link.is_symlink());
    }

    #[test]
    fn a_link_to_a_file_stays_and_the_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("out"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        let mut rows = RowsFile::create(&link, "embeddings").unwrap();
        rows.add(&Tensor::from_slice(&[1.0, 2.0], &[1, 2]).unwrap()).unwrap();
        rows.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap().len(), 8 + HEADER_BYTES + 8);
    }
}
