//! MiniGPT-4 and MiniGPT-v2: EVA-CLIP's tower, a Q-Former or neighbours joined, one linear layer, and
//! a LLaMA.
//!
//! Zhu et al. 2023, "MiniGPT-4", arXiv:2304.10592, §3; Chen et al. 2023, "MiniGPT-v2",
//! arXiv:2310.09478, §2.1.

use crate::Result;
use crate::connector::qformer::{self, QFormer, QFormerConfig};
use crate::language::causal::CausalModel;
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::systems::talker::{Talker, one_by_one};
use crate::systems::writer::Request;
use crate::vision::eva_vit::{self, EvaVit, EvaVitConfig};
use ocelli_data::text::BoxNotation;
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, copy};
use ocelli_tensor::Tensor;

/// Image tokens that stand beside each other and become one where there is no Q-Former.
const JOINED: usize = 4;
/// Identifiers that begin an instruction of MiniGPT-v2 and say what is asked (arXiv:2310.09478, §2.2):
/// a short answer, a caption, a caption with boxes, the box of a phrase, the name of what is in a box,
/// the boxes of all things of a kind.
pub const TASKS: [&str; 6] =
    ["[vqa]", "[caption]", "[grounding]", "[refer]", "[identify]", "[detection]"];

/// Changes of low rank to the attention of the language model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Their rank.
    pub rank: usize,
    /// How often they count.
    pub scale: f32,
    /// Projections that are changed: `q`, `k`, `v` or `out`.
    pub on: Vec<&'static str>,
}

/// Which of the papers' systems, and with it how it was tuned to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MiniGPT-4 on Vicuna.
    MiniGpt4,
    /// MiniGPT-4 on LLaMA-2, without a Q-Former.
    MiniGpt4Llama2,
    /// MiniGPT-v2.
    MiniGptV2,
}

/// Parts of a MiniGPT.
#[derive(Clone, Debug, PartialEq)]
pub struct MiniGpt4Config {
    /// Which system.
    pub version: Version,
    /// The tower.
    pub vision: EvaVitConfig,
    /// Epsilon of the norm behind the tower.
    pub norm_eps: f32,
    /// What reads the tower; without one, four neighbours become one token.
    pub qformer: Option<QFormerConfig>,
    /// The language model.
    pub text: LlamaConfig,
    /// What was trained of it.
    pub lora: Option<LoraConfig>,
}

/// MiniGPT-4.
#[derive(Debug)]
pub struct MiniGpt4 {
    config: MiniGpt4Config,
    vision: EvaVit,
    norm: LayerNorm,
    qformer: Option<QFormer>,
    projection: Linear,
    language: Llama,
}

impl MiniGpt4 {
    /// A model whose parameters come from `b`.
    pub fn new(config: &MiniGpt4Config, b: &Builder) -> Self {
        let c = config;
        let width = c.qformer.as_ref().map_or(JOINED * c.vision.width, |q| q.width);
        let init = Init::Uniform((width as f32).powf(-0.5));
        let language = Llama::new(&c.text, &b.at("language"));
        Self {
            vision: EvaVit::new(&c.vision, &b.at("vision")),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width, c.norm_eps),
            qformer: c.qformer.as_ref().map(|q| QFormer::new(q, &b.at("qformer"))),
            projection: Linear::new(&b.at("projection"), width, c.text.width, true, init),
            language: match &c.lora {
                Some(l) => language.with_lora(&b.at("language"), l.rank, l.scale, &l.on),
                None => language,
            },
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &MiniGpt4Config {
        &self.config
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to what the language model reads,
    /// `[batch, image tokens, width]`.
    ///
    /// # Errors
    /// If the channels differ, or the tokens are not whole groups of four.
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        let tokens = self.norm.forward(&self.vision.forward(pixels)?)?;
        let read = match &self.qformer {
            Some(qformer) => qformer.forward(&tokens.into())?,
            None => {
                let &[batch, tokens_, width] = &tokens.shape()[..] else {
                    unreachable!("the tower gives tokens of each picture")
                };
                let patches = tokens.narrow(1, 1, tokens_ - 1)?;
                patches.reshape(&[batch, (tokens_ - 1) / JOINED, JOINED * width])?
            }
        };
        Ok(self.projection.forward(&read)?)
    }
}

impl Talker for MiniGpt4 {
    fn language(&self) -> &dyn CausalModel {
        &self.language
    }

    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        one_by_one(&self.image_tokens(pixels)?)
    }

    fn template(&self) -> &'static str {
        match self.config.version {
            Version::MiniGpt4 => "minigpt4_vicuna_v0",
            Version::MiniGpt4Llama2 => "minigpt4_llama_2",
            Version::MiniGptV2 => "minigpt_v2",
        }
    }

    fn boxes(&self) -> Option<&'static BoxNotation> {
        (self.config.version == Version::MiniGptV2).then_some(&BoxNotation::MINIGPT_V2)
    }

    fn instruction(&self, request: &Request) -> String {
        let is_v2 = self.config.version == Version::MiniGptV2;
        let has_task = |text: &str| TASKS.iter().any(|task| text.trim_start().starts_with(task));
        match request {
            Request::Caption(Some(words)) => (*words).to_owned(),
            Request::Answer(question) if has_task(question) => (*question).to_owned(),
            Request::Caption(None) if is_v2 => "[caption] Describe the image briefly.".to_owned(),
            Request::Caption(None) => "Describe this image in one sentence.".to_owned(),
            Request::Answer(question) if is_v2 => format!(
                "[vqa] Based on the image, respond to this question with a short answer: {question}"
            ),
            Request::Answer(question) => (*question).to_owned(),
        }
    }
}

/// The parts of the original files beside the tower, the Q-Former and the language model.
const ORIGINAL: &[Name] = &[copy("norm.*", "ln_vision.*"), copy("projection.*", "llama_proj.*")];

/// Name maps of the original files; the language model's names follow `language`, such as
/// `llama_model.`.
pub fn names(language: &str, has_tied_head: bool) -> Vec<Names> {
    let body = format!("{language}model.");
    let [tables, head] = llama::names_at(&body, language, has_tied_head);
    vec![
        Names::family(ORIGINAL, &[]),
        eva_vit::lavis_names("visual_encoder.").under("vision."),
        qformer::lavis_names().under("qformer."),
        llama::lora_names(&body).under("language."),
        tables.under("language."),
        head.under("language."),
    ]
}
