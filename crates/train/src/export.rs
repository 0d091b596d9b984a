//! The finished model as a folder that `classify` and `embed` open.

use crate::checkpoint::{save_parameters, write_json};
use crate::setup::Setup;
use crate::{Error, Result};
use std::fs;
use std::path::Path;

/// Writes `config.json`, `model.safetensors` and the vocabulary to `folder`, which appears whole.
/// The weights are those of the file `weights`, or the present ones.
pub(crate) fn export(folder: &Path, setup: &Setup, weights: Option<&Path>) -> Result<()> {
    let io = |source| Error::Io { path: folder.to_path_buf(), source };
    let draft = folder.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(io)?;
    }
    fs::create_dir_all(&draft).map_err(io)?;
    let target = draft.join("model.safetensors");
    match weights {
        Some(path) => {
            fs::copy(path, &target).map_err(io)?;
        }
        None => save_parameters(&target, &setup.learner.parameters)?,
    }
    write_json(&draft.join("config.json"), &setup.learner.config_json(&setup.classes))?;
    for (name, bytes) in &setup.vocabulary {
        fs::write(draft.join(name), bytes).map_err(io)?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io)?;
    }
    fs::rename(&draft, folder).map_err(io)
}
