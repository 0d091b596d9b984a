//! A folder of pictures, one subfolder a class.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    classes::{Label, Labels},
    config::SourceConfig,
    error::{DatasetError, Result},
    source::{Annotation, Source, read_picture},
};
use crate::image::ENDINGS;

/// How deep folders may nest, which also ends cycles of links.
const MAX_DEPTH: usize = 16;

pub(super) struct Folder {
    root: PathBuf,
    /// Paths below the root.
    files: Vec<Box<Path>>,
}

impl Folder {
    pub(super) fn open(config: &SourceConfig) -> Result<(Self, Labels)> {
        let mut folder = Self { root: PathBuf::from(&config.path), files: Vec::new() };
        folder.gather(Path::new(""), 0)?;
        let mut labels = Labels::default();
        for file in &folder.files {
            let label = class(file).map_or(Label::None, Label::Name);
            labels.push(label, &config.path)?;
        }
        Ok((folder, labels))
    }

    /// Paths of the pictures below the root, in order.
    pub(super) fn into_files(self) -> Vec<Box<Path>> {
        self.files
    }

    /// Adds the pictures at and below `inside`, by name.
    fn gather(&mut self, inside: &Path, depth: usize) -> Result<()> {
        let path = self.root.join(inside);
        let io = |source| DatasetError::Io { path: path.clone(), source };
        let mut entries = std::fs::read_dir(&path)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.and_then(|e| Ok((e.file_name(), e.file_type()?))))
                    .collect::<std::io::Result<Vec<_>>>()
            })
            .map_err(io)?;
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (name, kind) in entries {
            let file = inside.join(&name);
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            let extension = file.extension().and_then(|v| v.to_str()).map(str::to_ascii_lowercase);
            // Pipes and devices would be waited for; a broken link is an error of its sample.
            let may_be_file = kind.is_file()
                || kind.is_symlink()
                    && self.root.join(&file).metadata().map_or(true, |m| m.is_file());
            if may_be_file && extension.is_some_and(|e| ENDINGS.contains(&e.as_str())) {
                self.files.push(file.into_boxed_path());
            } else if depth < MAX_DEPTH && self.root.join(&file).is_dir() {
                self.gather(&file, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// The first folder on the way to a file.
fn class(file: &Path) -> Option<String> {
    let mut parts = file.iter();
    let first = parts.next()?.to_string_lossy().into_owned();
    parts.next().map(|_| first)
}

impl Source for Folder {
    fn annotation(&self, index: usize) -> Result<Annotation> {
        let file = &self.files[index];
        Ok(Annotation {
            key: file.with_extension("").display().to_string(),
            captions: class(file).map(|class| vec![class]).into_iter().collect(),
            label: None,
            meta: Value::Null,
        })
    }

    fn picture(&self, index: usize) -> Result<Vec<u8>> {
        read_picture(&self.root.join(&self.files[index]))
    }

    fn place(&self, index: usize) -> String {
        self.root.join(&self.files[index]).display().to_string()
    }
}
