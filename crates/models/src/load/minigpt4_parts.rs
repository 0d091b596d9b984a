//! A MiniGPT from its separate parts: published files hold what was trained, the tower, the Q-Former
//! and the language model lie beside them.

use super::blip2_config::Sizes;
use super::blip2_parts::{LANGUAGE, TOWERS};
use super::fields::Fields;
use super::minigpt4_config;
use crate::Result;
use ocelli_nn::checkpoint::Checkpoint;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The Q-Former that MiniGPT-4 was trained with, as published.
const QFORMER: &str = "blip2_pretrained_flant5xxl.pth";
/// What was left out of the Q-Former: it reads no text.
const UNREAD: [&str; 3] = [".embeddings.word_", ".embeddings.position_", "Qformer.cls."];
/// Files of a folder that are looked at.
const MOST_FILES: usize = 1000;
/// How files of weights end.
const WEIGHTS: [&str; 4] = ["pth", "pt", "bin", "safetensors"];
/// Image tokens joined where there is no Q-Former.
const JOINED: usize = 4;

/// Whether a file holds only what was trained.
fn is_trained_only(weights: &Checkpoint) -> bool {
    weights.info("llama_proj.weight").is_some()
        && weights.info("visual_encoder.pos_embed").is_none()
}

/// The configuration of the language model beside a file, for the section `llama`.
pub(super) fn language_config(path: &Path) -> Option<PathBuf> {
    let file = dir_of(path).join(LANGUAGE).join("config.json");
    file.is_file().then_some(file)
}

fn dir_of(path: &Path) -> &Path {
    if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) }
}

/// The file of what was trained in a folder that holds the parts side by side; none if `dir` is
/// another folder.
///
/// # Errors
/// If there are several.
pub(super) fn trained_in(dir: &Path) -> Result<Option<PathBuf>> {
    if !dir.join(TOWERS[0]).is_file() {
        return Ok(None);
    }
    let entries = dir.read_dir().into_iter().flatten().flatten().take(MOST_FILES);
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| {
        let is_frozen = [TOWERS[0], QFORMER].iter().any(|part| file.ends_with(part));
        let is_weights = file.extension().is_some_and(|e| WEIGHTS.iter().any(|known| e == *known));
        let opens = || Checkpoint::open(file).is_ok_and(|c| c.info("llama_proj.weight").is_some());
        !is_frozen && is_weights && opens()
    });
    files.sort();
    if files.len() > 1 {
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let reason = format!(
            "the folder holds several trained parts, {}; give one of these files as the model",
            names.join(" and ")
        );
        return Err(Fields::new(&Value::Null, dir).error("llama_proj", reason));
    }
    Ok(files.pop())
}

/// The whole of the trained parts at `path` and the frozen ones beside them.
pub(super) fn complete(path: &Path, trained: Checkpoint) -> Result<Checkpoint> {
    if !is_trained_only(&trained) {
        return Ok(trained);
    }
    let dir = dir_of(path);
    let nothing = Value::Null;
    let f = Fields::new(&nothing, path);
    let missing = |field: &str, what: &str, file: &str| {
        let reason = format!(
            "{what} is not part of this checkpoint and not beside it; fetch it and put it into {}",
            dir.join(file).display()
        );
        f.error(field, reason)
    };
    let tower = Some(dir.join(TOWERS[0])).filter(|file| file.is_file());
    let tower = tower.ok_or_else(|| missing("visual_encoder", "the frozen tower", TOWERS[0]))?;
    let tower = Checkpoint::open(&tower)?;
    let sizes = Sizes::new(&tower, path);
    // Nobody runs the last block.
    let last = format!("blocks.{}.", sizes.count("blocks.", ".norm1.weight").saturating_sub(1));
    let [width, _, _, _] = sizes.axes("patch_embed.proj.weight")?;
    let is_unread = |name: &str| {
        let behind = ["head.", "norm.", "fc_norm."].iter().any(|part| name.starts_with(part));
        behind || name.starts_with(&last) || name.ends_with("relative_position_index")
    };
    let mut whole = Checkpoint::default()
        .over(&tower, |name| (!is_unread(name)).then(|| format!("visual_encoder.{name}")));

    let [_, read] = Sizes::new(&trained, path).axes("llama_proj.weight")?;
    let has_qformer = read != JOINED * width;
    let qformer = dir.join(QFORMER);
    if qformer.is_file() {
        let is_text = |name: &str| {
            let ffn = name.starts_with("Qformer.")
                && (name.contains(".intermediate.") || is_text_output(name));
            ffn || UNREAD.iter().any(|part| name.contains(part))
        };
        let wanted = |name: &str| {
            let of_qformer = name.starts_with("Qformer.") || name == "query_tokens";
            name.starts_with("ln_vision.") || (has_qformer && of_qformer && !is_text(name))
        };
        let held = Checkpoint::open(&qformer)?;
        whole = whole.over(&held, |name| wanted(name).then(|| name.to_owned()));
    } else if trained.info("ln_vision.weight").is_none() {
        return Err(missing("Qformer", "the Q-Former, with the norm before it,", QFORMER));
    }

    let language = dir.join(LANGUAGE);
    if !language.join("config.json").is_file() {
        let what = "the frozen language model, a Vicuna or LLaMA-2 with its config.json,";
        return Err(missing("llama_model", what, LANGUAGE));
    }
    let [plain, peft] = minigpt4_config::LANGUAGE;
    let has_peft = trained.names().any(|name| name.starts_with(peft));
    let prefix = if has_peft { peft } else { plain };
    let language = Checkpoint::open(&language)?;
    whole = whole.over(&language, |name| Some(format!("{prefix}{name}")));
    Ok(whole.over(&trained, |name| Some(newest(name))))
}

/// The second layer of the perceptron for texts; that of an attention is named alike.
fn is_text_output(name: &str) -> bool {
    name.contains(".output.") && !name.contains("attention.output.")
}

/// The name without what newer versions of peft put into it.
fn newest(name: &str) -> String {
    name.replace(".default.", ".").replace(".base_layer.", ".")
}
