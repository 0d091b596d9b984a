//! Models of published sizes, by the names that `--shape` takes.

use crate::failure::Failure;
use ocelli_models::Model;
use ocelli_models::language::llama::{Llama, LlamaConfig};
use ocelli_models::systems::clip::{Clip, ClipConfig};
use ocelli_models::systems::flamingo::{Flamingo, FlamingoConfig};
use ocelli_models::systems::mplug_owl::{MplugOwl, MplugOwlConfig};
use ocelli_models::systems::qwen_vl::{QwenVl, QwenVlConfig};
use ocelli_models::systems::visualglm::{VisualGlm, VisualGlmConfig};
use ocelli_models::systems::xcomposer::{XComposer, XComposerConfig};
use ocelli_models::vision::nfnet::{NfNet, NfNetConfig};
use ocelli_models::vision::vit::{Vit, VitConfig};
use ocelli_nn::Builder;

/// All of them, as the papers and OpenAI's code spell them.
pub(crate) const NAMES: [&str; 37] = [
    "vit-ti16",
    "vit-s32",
    "vit-s16",
    "vit-b32",
    "vit-b16",
    "vit-l32",
    "vit-l16",
    "vit-h14",
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336",
    "llama-1.1b",
    "llama-7b",
    "llama-13b",
    "nfnet-f0",
    "nfnet-f1",
    "nfnet-f2",
    "nfnet-f3",
    "nfnet-f4",
    "nfnet-f5",
    "nfnet-f6",
    "flamingo-3b",
    "flamingo-9b",
    "flamingo-80b",
    "openflamingo-3b",
    "openflamingo-4b",
    "openflamingo-9b",
    "mplug-owl-7b",
    "qwen-vl-7b",
    "visualglm-6b",
    "xcomposer-vl-7b",
];

/// A model of a published size with parameters of `b`, whatever the case of the letters.
pub(crate) fn build(shape: &str, b: &Builder) -> Result<Model, Failure> {
    let unknown =
        || Failure::usage(format!("no published size {shape:?}; `ocelli model list` names them"));
    let lower = shape.to_ascii_lowercase();
    let name = match lower.as_str() {
        "clip-b32" => "ViT-B/32",
        "clip-b16" => "ViT-B/16",
        "clip-l14" => "ViT-L/14",
        other => NAMES.iter().find(|n| n.eq_ignore_ascii_case(other)).ok_or_else(unknown)?,
    };
    if let Some(config) = ClipConfig::variant(name) {
        return Ok(Model::Clip(Box::new(Clip::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("llama-").and_then(LlamaConfig::variant) {
        return Ok(Model::Llama(Box::new(Llama::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("nfnet-") {
        let config = NfNetConfig::variant(&config.to_ascii_uppercase()).ok_or_else(unknown)?;
        return Ok(Model::NfNet(Box::new(NfNet::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("flamingo-").and_then(FlamingoConfig::variant) {
        return Ok(Model::Flamingo(Box::new(Flamingo::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("openflamingo-").and_then(FlamingoConfig::released) {
        return Ok(Model::Flamingo(Box::new(Flamingo::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("mplug-owl-").and_then(MplugOwlConfig::variant) {
        return Ok(Model::MplugOwl(Box::new(MplugOwl::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("qwen-vl-").and_then(QwenVlConfig::variant) {
        return Ok(Model::QwenVl(Box::new(QwenVl::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("visualglm-").and_then(VisualGlmConfig::variant) {
        return Ok(Model::VisualGlm(Box::new(VisualGlm::new(&config, b))));
    }
    if let Some(config) = name.strip_prefix("xcomposer-").and_then(XComposerConfig::variant) {
        return Ok(Model::XComposer(Box::new(XComposer::new(&config, b))));
    }
    let size = name.trim_start_matches("vit-");
    let (size, patch) = size.split_at(size.find(|c: char| c.is_ascii_digit()).unwrap_or(0));
    let size = if size == "ti" { "Ti".to_owned() } else { size.to_ascii_uppercase() };
    let config = VitConfig::variant(&format!("{size}/{patch}")).ok_or_else(unknown)?;
    Ok(Model::Vit(Box::new(Vit::new(&config, b))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case() {
        for name in ["rn50", "VIT-TI16", "vit-b/32", "Clip-B32"] {
            assert!(build(name, &Builder::zeros()).is_ok(), "{name}");
        }
        for wrong in ["", "vit-", "vit-z99", "RN", "50"] {
            assert!(build(wrong, &Builder::zeros()).is_err(), "{wrong}");
        }
    }
}
