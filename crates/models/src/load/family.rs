//! Families of checkpoints, and how one is told from another.

use super::{
    blip_config, blip2_config, flamingo_config, mplug_owl_config, nfnet_config, qwen_vl_config,
    visualglm_config, xcomposer_config,
};
use ocelli_nn::checkpoint::Checkpoint;
use serde_json::Value;

/// A family of checkpoints: one layout of files and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// ViT of transformers.
    TransformersVit,
    /// DINOv2 of transformers.
    Dinov2,
    /// ViT of timm.
    TimmVit,
    /// ViT on a ResNet of timm.
    TimmHybrid,
    /// NFNet of timm.
    TimmNfNet,
    /// ViT of the original code, on a ResNet or not, `.npz`.
    JaxVit,
    /// CLIP of transformers.
    TransformersClip,
    /// CLIP of open_clip.
    OpenClip,
    /// CLIP of OpenAI.
    OpenAiClip,
    /// BERT of transformers.
    Bert,
    /// The tower of EVA-CLIP, as its release and LAVIS name it.
    EvaVit,
    /// The trunk of CLIP's tower, as LAVIS names it.
    LavisClipVit,
    /// A Q-Former alone, as LAVIS names it.
    QFormer,
    /// BLIP of transformers.
    TransformersBlip,
    /// BLIP of the original code.
    OriginalBlip,
    /// BLIP-2 of transformers.
    TransformersBlip2,
    /// InstructBLIP of transformers.
    InstructBlip,
    /// BLIP-2 of LAVIS.
    LavisBlip2,
    /// LLaMA and Vicuna of transformers.
    Llama,
    /// GPT-2 of transformers.
    Gpt2,
    /// OPT of transformers.
    Opt,
    /// GPT-NeoX, Pythia and RedPajama-INCITE of transformers.
    GptNeox,
    /// MPT of transformers.
    Mpt,
    /// T5 of transformers.
    T5,
    /// A LLaMA in a GGUF file.
    Gguf,
    /// LLaVA, of transformers or of the original code.
    Llava,
    /// MiniGPT-4 and MiniGPT-v2 of the original code.
    MiniGpt4,
    /// mPLUG-Owl of the original code, or its abstractor alone.
    MplugOwl,
    /// Qwen-VL of the original code, or its adapter alone.
    QwenVl,
    /// VisualGLM, what sees in it, or a `ChatGLM`.
    VisualGlm,
    /// InternLM-XComposer, or an `InternLM`.
    XComposer,
    /// A resampler and a gated cross attention, as OpenFlamingo and flamingo-pytorch name them.
    FlamingoParts,
    /// Flamingo of OpenFlamingo.
    Flamingo,
    /// A model that this program trained.
    Ocelli,
}

impl Family {
    /// All families with their names on the command line.
    pub const ALL: [(&'static str, Self); 34] = [
        ("transformers-vit", Self::TransformersVit),
        ("dinov2", Self::Dinov2),
        ("timm-vit", Self::TimmVit),
        ("timm-hybrid", Self::TimmHybrid),
        ("timm-nfnet", Self::TimmNfNet),
        ("jax-vit", Self::JaxVit),
        ("transformers-clip", Self::TransformersClip),
        ("open-clip", Self::OpenClip),
        ("openai-clip", Self::OpenAiClip),
        ("bert", Self::Bert),
        ("eva-vit", Self::EvaVit),
        ("lavis-clip-vit", Self::LavisClipVit),
        ("qformer", Self::QFormer),
        ("transformers-blip", Self::TransformersBlip),
        ("original-blip", Self::OriginalBlip),
        ("transformers-blip2", Self::TransformersBlip2),
        ("instructblip", Self::InstructBlip),
        ("lavis-blip2", Self::LavisBlip2),
        ("llama", Self::Llama),
        ("gpt2", Self::Gpt2),
        ("opt", Self::Opt),
        ("gpt-neox", Self::GptNeox),
        ("mpt", Self::Mpt),
        ("t5", Self::T5),
        ("gguf", Self::Gguf),
        ("llava", Self::Llava),
        ("minigpt4", Self::MiniGpt4),
        ("mplug-owl", Self::MplugOwl),
        ("qwen-vl", Self::QwenVl),
        ("visualglm", Self::VisualGlm),
        ("xcomposer", Self::XComposer),
        ("flamingo-parts", Self::FlamingoParts),
        ("flamingo", Self::Flamingo),
        ("ocelli", Self::Ocelli),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("", |(name, _)| name)
    }

    /// Short names of the families that most files are of.
    const SHORT: [(&'static str, Self); 5] = [
        ("vit", Self::TransformersVit),
        ("timm", Self::TimmVit),
        ("npz", Self::JaxVit),
        ("clip", Self::TransformersClip),
        ("openai", Self::OpenAiClip),
    ];

    /// The family of that name, or short name; `open_clip` is as good as `open-clip`.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace('_', "-");
        Self::ALL.iter().chain(&Self::SHORT).find(|(n, _)| *n == name).map(|(_, f)| *f)
    }

    /// The family that a configuration tells of.
    pub(super) fn of_config(config: &Value) -> Option<Self> {
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        if text("format") == Some("ocelli") {
            return Some(Self::Ocelli);
        }
        if config.get("model_cfg").is_some() {
            return Some(Self::OpenClip);
        }
        match text("model_type") {
            Some("vit") => return Some(Self::TransformersVit),
            Some("dinov2") => return Some(Self::Dinov2),
            Some("clip") => return Some(Self::TransformersClip),
            Some("bert") => return Some(Self::Bert),
            Some("t5") => return Some(Self::T5),
            Some("llama") => return Some(Self::Llama),
            Some("llava" | "llava_llama") => return Some(Self::Llava),
            Some("mplug-owl") => return Some(Self::MplugOwl),
            Some("qwen") if config.get("visual").is_some() => return Some(Self::QwenVl),
            Some("chatglm") => return Some(Self::VisualGlm),
            Some("InternLMXComposer" | "internlm") => return Some(Self::XComposer),
            Some("gpt2") => return Some(Self::Gpt2),
            Some("opt") => return Some(Self::Opt),
            Some("gpt_neox") => return Some(Self::GptNeox),
            Some("mpt" | "mosaic_gpt") => return Some(Self::Mpt),
            Some("blip") => return Some(Self::TransformersBlip),
            Some("blip-2") => return Some(Self::TransformersBlip2),
            Some("instructblip") => return Some(Self::InstructBlip),
            _ => {}
        }
        if flamingo_config::is_whole(config) {
            return Some(Self::Flamingo);
        }
        if flamingo_config::is_parts(config) {
            return Some(Self::FlamingoParts);
        }
        if nfnet_config::is_one(config) {
            return Some(Self::TimmNfNet);
        }
        let args = config.get("model_args");
        if args.and_then(|a| a.get("backbone")).is_some() {
            return Some(Self::TimmHybrid);
        }
        text("architecture").filter(|a| a.starts_with("vit")).map(|_| Self::TimmVit)
    }

    /// The family of a file without a configuration, by what its tensors are called.
    pub(super) fn of_tensors(weights: &Checkpoint) -> Option<Self> {
        let has = |name: &str| weights.info(name).is_some();
        let jax = "Transformer/encoder_norm/scale";
        if flamingo_config::is_flamingo(weights) {
            Some(Self::Flamingo)
        } else if has("visual.conv1.weight") {
            Some(Self::OpenAiClip)
        } else if has(jax) || has(&format!("opt/target/{jax}")) {
            Some(Self::JaxVit)
        } else if blip_config::is_original(weights) {
            Some(Self::OriginalBlip)
        } else if has(mplug_owl_config::ABSTRACTOR) {
            Some(Self::MplugOwl)
        } else if has(qwen_vl_config::TOWER) || has(qwen_vl_config::ADAPTER) {
            Some(Self::QwenVl)
        } else if visualglm_config::is_one(weights) {
            Some(Self::VisualGlm)
        } else if xcomposer_config::is_one(weights) {
            Some(Self::XComposer)
        } else {
            blip2_config::family_of(weights)
        }
    }
}
