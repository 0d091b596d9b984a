//! `ocelli model list`: the systems, the families of checkpoints that are read, the published sizes.

use crate::failure::Failure;
use crate::output::Output;
use crate::{shapes, table};
use ocelli_models::Family;

/// List the systems, the checkpoints that are read, and the published sizes
#[derive(clap::Args)]
pub(crate) struct Args {}

/// System, paper, parts, commands beside `model` and `bench`, and whether `train` trains it.
const SYSTEMS: [[&str; 5]; 24] = [
    ["ViT", "2010.11929", "patches, encoder, head", "classify, embed", "yes"],
    ["hybrid ViT", "2010.11929", "ResNet, encoder, head", "classify, embed", "yes"],
    [
        "local, axial ViT",
        "1906.05909",
        "patches, encoder of windows or axes",
        "classify, embed",
        "yes",
    ],
    ["CLIP", "2103.00020", "ViT or ResNet; text encoder", "classify, match, embed", "yes"],
    ["DINOv2", "2304.07193", "patches, encoder", "embed", "no"],
    ["BERT", "1810.04805", "encoder", "embed", "no"],
    ["LiT", "2111.07991", "DINOv2; BERT; two heads", "classify, match, embed", "yes"],
    ["LLaMA, Vicuna", "2302.13971", "decoder", "generate, run", "no"],
    ["GPT-2", "-", "decoder", "generate, run", "no"],
    ["OPT", "2205.01068", "decoder", "generate, run", "no"],
    ["GPT-NeoX, Pythia", "2204.06745", "decoder", "generate, run", "no"],
    ["MPT", "-", "decoder", "generate, run", "no"],
    ["ChatGLM", "2210.02414", "decoder", "generate, run", "no"],
    ["T5, Flan-T5", "1910.10683", "encoder, decoder", "generate", "no"],
    ["NFNet", "2102.06171", "ResNet without norms", "classify, embed", "no"],
    ["BLIP", "2201.12086", "ViT; BERT with cross attention", "caption, vqa, match, embed", "no"],
    [
        "BLIP-2, InstructBLIP",
        "2301.12597",
        "EVA ViT; Q-Former; OPT, T5, LLaMA",
        "caption, vqa, match, generate",
        "no",
    ],
    [
        "Flamingo",
        "2204.14198",
        "NFNet or CLIP; resampler; gated layers",
        "caption, vqa, generate, run",
        "no",
    ],
    ["LLaVA", "2304.08485", "CLIP; linear map or MLP; LLaMA", "caption, vqa, generate, run", "no"],
    [
        "MiniGPT-4, -v2",
        "2304.10592",
        "EVA ViT; Q-Former or map; LLaMA",
        "caption, vqa, generate, run",
        "no",
    ],
    ["mPLUG-Owl", "2304.14178", "CLIP; abstractor; LLaMA", "caption, vqa, generate, run", "no"],
    ["VisualGLM", "2210.02414", "EVA ViT; Q-Former; ChatGLM", "caption, vqa, generate, run", "no"],
    ["Qwen-VL", "2308.12966", "ViT-bigG; resampler; Qwen", "caption, vqa, generate, run", "no"],
    [
        "InternLM-XComposer",
        "2309.15112",
        "EVA ViT; Q-Former; InternLM",
        "caption, vqa, generate, run, compose",
        "no",
    ],
];

/// What a family is, and the files it is known by.
fn described(family: Family) -> [&'static str; 2] {
    match family {
        Family::TransformersVit => ["ViT of transformers", "config.json with model_type vit"],
        Family::Dinov2 => ["DINOv2 of transformers", "config.json with model_type dinov2"],
        Family::TimmVit => ["ViT of timm", "config.json with architecture vit_*"],
        Family::TimmHybrid => ["ViT on a ResNet of timm", "config.json with model_args.backbone"],
        Family::TimmNfNet => {
            ["NFNet of timm", "config.json with architecture dm_nfnet_* or nfnet_*"]
        }
        Family::JaxVit => ["ViT of the original code", "a .npz file"],
        Family::TransformersClip => ["CLIP of transformers", "config.json with model_type clip"],
        Family::OpenClip => ["CLIP of open_clip", "open_clip_config.json"],
        Family::OpenAiClip => {
            ["CLIP of OpenAI", "a .pt or .safetensors file without configuration"]
        }
        Family::Llama => ["LLaMA of transformers", "config.json with model_type llama"],
        Family::Gpt2 => ["GPT-2 of transformers", "config.json with model_type gpt2"],
        Family::Opt => ["OPT of transformers", "config.json with model_type opt"],
        Family::GptNeox => ["GPT-NeoX of transformers", "config.json with model_type gpt_neox"],
        Family::Mpt => ["MPT of transformers", "config.json with model_type mpt"],
        Family::Gguf => ["LLaMA in a GGUF file", "a .gguf file of the architecture llama"],
        Family::T5 => ["T5 and Flan-T5 of transformers", "config.json with model_type t5"],
        Family::Bert => ["BERT of transformers", "config.json with model_type bert"],
        Family::EvaVit => ["tower of EVA-CLIP", "a file of its tensors, such as eva_vit_g.pth"],
        Family::LavisClipVit => ["trunk of CLIP in LAVIS", "a file of its tensors"],
        Family::QFormer => ["Q-Former of LAVIS", "a file of its tensors"],
        Family::TransformersBlip => ["BLIP of transformers", "config.json with model_type blip"],
        Family::OriginalBlip => ["BLIP of the original code", "a file of its tensors"],
        Family::TransformersBlip2 => {
            ["BLIP-2 of transformers", "config.json with model_type blip-2"]
        }
        Family::InstructBlip => {
            ["InstructBLIP of transformers", "config.json with model_type instructblip"]
        }
        Family::LavisBlip2 => ["BLIP-2 of LAVIS", "a file of its tensors"],
        Family::Llava => [
            "LLaVA of transformers, or original",
            "config.json with model_type llava, the tower beside it",
        ],
        Family::MiniGpt4 => {
            ["MiniGPT-4, MiniGPT-v2", "a file of its tensors with all parts, config.json beside it"]
        }
        Family::MplugOwl => ["mPLUG-Owl, its abstractor", "config.json with model_type mplug-owl"],
        Family::QwenVl => ["Qwen-VL, its adapter", "config.json with model_type qwen and visual"],
        Family::VisualGlm => ["VisualGLM, ChatGLM", "config.json with model_type chatglm"],
        Family::XComposer => {
            ["InternLM-XComposer", "config.json with model_type InternLMXComposer or internlm"]
        }
        Family::Flamingo => [
            "Flamingo of OpenFlamingo",
            "a checkpoint.pt, with the folders vision and language beside it",
        ],
        Family::FlamingoParts => {
            ["parts of a Flamingo", "config.json with module PerceiverResampler"]
        }
        Family::Ocelli => ["trained by this program", "config.json with format ocelli"],
    }
}

fn systems() -> String {
    let head = ["system", "paper", "parts", "commands", "trains"];
    let all = || std::iter::once(&head).chain(&SYSTEMS);
    let widths: Vec<usize> =
        (0..head.len()).map(|i| all().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    let line = |row: &[&str; 5]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| table::pad(cell, *width)).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    all().map(line).collect()
}

pub(super) fn run(_: &Args) -> Result<(), Failure> {
    let mut out = Output::new();
    out.text(&format!("{}\n", systems()))?;
    out.text("Families of checkpoints, and how they are recognised:\n")?;
    for (name, family) in Family::ALL {
        let [what, files] = described(family);
        out.text(&format!("  {}  {}  {files}\n", table::pad(name, 18), table::pad(what, 25)))?;
    }
    out.text(
        "\nWeights: .safetensors, .bin, .pt, .pth, .npz, .gguf; single, sharded, or from the hub.\n",
    )?;
    out.text("\nPublished sizes, for --shape:\n")?;
    for names in shapes::NAMES.chunks(8) {
        out.text(&format!("  {}\n", names.join("  ")))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_those_of_the_readme() {
        let readme = include_str!("../../../../../README.md");
        for [system, paper, ..] in SYSTEMS {
            let name = system.split([',', ' ']).next().unwrap_or(system);
            let rows = || readme.lines().filter(|line| line.starts_with("| "));
            assert!(rows().any(|row| row.contains(name)), "{system}");
            assert!(paper == "-" || rows().any(|row| row.contains(paper)), "{system}: {paper}");
        }
    }
}
