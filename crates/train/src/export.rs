//! The finished model as a folder in the layout of its family, which `classify` and `embed` open, and
//! so do the libraries that the family is of.

use crate::checkpoint::{read_parameters, write_json};
use crate::setup::Setup;
use crate::{Error, Result};
use ocelli_models::{Model, Published};
use ocelli_nn::checkpoint::{Dtype, TensorView, save_safetensors};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Writes configuration, weights, processor and vocabulary to `folder`, which appears whole. The
/// weights are those of the checkpoint file `weights`, which the model takes, or the present ones.
pub(crate) fn export(folder: &Path, setup: &Setup, weights: Option<&Path>) -> Result<()> {
    let io = |source| Error::Io { path: folder.to_path_buf(), source };
    let draft = folder.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(io)?;
    }
    fs::create_dir_all(&draft).map_err(io)?;
    let learner = &setup.learner;
    let Published { config_file, config, weights_file, names } = learner.published(&setup.classes);
    if let Some(path) = weights {
        read_parameters(path, &learner.parameters)?;
    }
    let tensors = learner.parameters.export(&names, |p| Some(p.tensor()));
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, values)| {
            let bytes = bytemuck::cast_slice(values);
            TensorView { name, dtype: Dtype::F32, shape, bytes }
        })
        .collect();
    // transformers opens no file that does not say this.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save_safetensors(&draft.join(weights_file), &views, &metadata)?;
    write_json(&draft.join(config_file), &config)?;
    if config.get("format").is_none() {
        write_json(&draft.join("preprocessor_config.json"), learner.preprocessing())?;
    }
    if let Model::Clip(clip) = &learner.model {
        let tokens = clip.text().config().context_length;
        let tokenizer = json!({
            "tokenizer_class": "CLIPTokenizer", "model_max_length": tokens,
            "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        });
        write_json(&draft.join("tokenizer_config.json"), &tokenizer)?;
    }
    for (name, bytes) in &setup.vocabulary {
        fs::write(draft.join(name), bytes).map_err(io)?;
    }
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io)?;
    }
    fs::rename(&draft, folder).map_err(io)
}
