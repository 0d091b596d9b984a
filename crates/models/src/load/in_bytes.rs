//! A model written with the weights of its linear layers as bytes.

use super::{Family, Files, HeadCounts};
use crate::{Error, Result};
use ocelli_nn::Names;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Ends of the names of the files that tell what weights are, and how texts and pictures are read.
const BESIDE: [&str; 6] = ["json", "txt", "model", "jinja", "tiktoken", "gz"];
/// The weights' file of the new folder.
const WEIGHTS: &str = "model.safetensors";

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenInBytes {
    /// Tensors that are bytes with scales now.
    pub weights: usize,
    /// The file of the weights.
    pub file: PathBuf,
}

impl Files {
    /// Writes the model to the folder `to`, the weights of its linear layers as bytes with a scale for
    /// each output, all else as it is; see [`ocelli_nn::checkpoint::Checkpoint::save_in_bytes`]. The
    /// folder reads as the same family.
    ///
    /// # Errors
    /// If the model is in several files of different kinds or in blocks, or has no linear layers; if a
    /// file cannot be read or written.
    pub fn save_in_bytes(&self, to: &Path) -> Result<WrittenInBytes> {
        let (what, needs) = ("writing weights as bytes", "a model with a folder of its own");
        let unsuitable = |is: &str| Error::Unsuitable { what, needs, is: is.to_owned() };
        if self.is_builtin {
            return Err(unsuitable("the built-in one"));
        }
        if self.family == Family::Gguf {
            return Err(unsuitable("a GGUF file, whose weights are in blocks already"));
        }
        let measured = self.measure(HeadCounts::default())?;
        if !measured.sources.is_empty() {
            return Err(unsuitable("one that is put together from several places"));
        }
        let linear = measured.parameters.iter().filter(|p| p.is_linear());
        let stored = linear.flat_map(|p| Names::stored_rows(&measured.names, p.name()));
        let weights: BTreeSet<String> = stored.collect();
        if weights.is_empty() {
            return Err(unsuitable("one whose file holds no linear layer by its outputs"));
        }
        copy_beside(self.dir(), to)?;
        let file = to.join(WEIGHTS);
        self.weights()?.save_in_bytes(&file, &weights)?;
        Ok(WrittenInBytes { weights: weights.len(), file })
    }
}

/// Copies the small files of a model's folder, but for those that list the places of weights.
fn copy_beside(from: &Path, to: &Path) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for entry in std::fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        let Some(name) = path.file_name() else { continue };
        let is_beside = path.extension().is_some_and(|e| BESIDE.iter().any(|b| e == *b));
        if path.is_dir() && path.join("tokenizer_config.json").is_file() {
            copy_beside(&path, &to.join(name))?;
        } else if path.is_file() && is_beside && !name.to_string_lossy().ends_with(".index.json") {
            let target = to.join(name);
            std::fs::copy(&path, &target).map_err(io(&target))?;
        }
    }
    Ok(())
}
