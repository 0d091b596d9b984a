//! InternLM-XComposer: EVA-CLIP's tower, a perceive sampler, and an `InternLM`.
//!
//! Zhang et al. 2023, "InternLM-XComposer", arXiv:2309.15112, §3.1. The sampler is a Q-Former; `InternLM` is a
//! LLaMA with biases in its attention, and was changed by a low rank for answering. Learned vectors stand
//! before and behind each picture.

use crate::Result;
use crate::connector::qformer::{self, QFormer, QFormerConfig};
use crate::language::causal::CausalModel;
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::systems::minigpt4::LoraConfig;
use crate::systems::talker::{Talker, one_by_one};
use crate::systems::writer::Request;
use crate::vision::eva_vit::{self, EvaVit, EvaVitConfig};
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::Tensor;

/// Parts of an InternLM-XComposer.
#[derive(Clone, Debug, PartialEq)]
pub struct XComposerConfig {
    /// The tower.
    pub vision: EvaVitConfig,
    /// Epsilon of the norm behind the tower.
    pub norm_eps: f32,
    /// What reads it.
    pub sampler: QFormerConfig,
    /// The language model.
    pub text: LlamaConfig,
    /// What was trained of it for answering; none if that is part of the weights.
    pub lora: Option<LoraConfig>,
}

impl XComposerConfig {
    /// The published system that answers, `"vl-7b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let text = LlamaConfig::variant(name.strip_prefix("vl-")?).filter(|_| name == "vl-7b")?;
        let text = LlamaConfig {
            vocab: 103_170,
            context_length: 2048,
            norm_eps: 1e-5,
            qkv_bias: true,
            out_bias: true,
            ..text
        };
        let vision = EvaVitConfig::variant("g/14")?;
        let sampler = QFormerConfig { queries: 64, ..QFormerConfig::base(vision.width) };
        let lora = LoraConfig { rank: 256, scale: 1.0, on: vec!["q", "v", "up", "down"] };
        Some(Self { vision, norm_eps: 1e-5, sampler, text, lora: Some(lora) })
    }
}

/// InternLM-XComposer.
#[derive(Debug)]
pub struct XComposer {
    config: XComposerConfig,
    vision: EvaVit,
    norm: LayerNorm,
    sampler: QFormer,
    projection: Linear,
    ends: [Parameter; 2],
    language: Llama,
}

impl XComposer {
    /// A model whose parameters come from `b`.
    pub fn new(config: &XComposerConfig, b: &Builder) -> Self {
        let c = config;
        let init = Init::Uniform((c.sampler.width as f32).powf(-0.5));
        let end = |name: &str| b.at("ends").parameter(name, &[c.text.width], Init::Normal(0.02));
        let language = Llama::new(&c.text, &b.at("language"));
        Self {
            vision: EvaVit::new(&c.vision, &b.at("vision")),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width, c.norm_eps),
            sampler: QFormer::new(&c.sampler, &b.at("qformer")),
            projection: Linear::new(&b.at("projection"), c.sampler.width, c.text.width, true, init),
            ends: ["start", "end"].map(end),
            language: match &c.lora {
                Some(l) => language.with_lora(&b.at("language"), l.rank, l.scale, &l.on),
                None => language,
            },
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &XComposerConfig {
        &self.config
    }

    /// What the sampler reads of normalised `pixels` `[batch, 3, img_h, img_w]`,
    /// `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn seen(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.vision.forward(pixels)?)?)
    }

    /// See [`Llama::turn_half_back`].
    pub fn turn_half_back(&mut self) {
        self.language.turn_half_back();
    }

    /// What the language model reads of normalised `pixels`, its start and end with it,
    /// `[batch, queries + 2, width]`.
    ///
    /// # Errors
    /// As for [`XComposer::seen`].
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        let read = self.sampler.forward(&self.seen(pixels)?.into())?;
        let read = self.projection.forward(&read)?; // [batch, queries, width]
        let [batch, width] = [read.shape()[0], self.config.text.width];
        let end = |end: &Parameter| -> Result<Tensor> {
            let ends = Tensor::zeros(&[batch, 1, width]);
            Ok(ends.add_table(&end.tensor().reshape(&[1, width])?)?)
        };
        Ok(Tensor::cat(&[&end(&self.ends[0])?, &read, &end(&self.ends[1])?], 1)?)
    }
}

impl Talker for XComposer {
    fn language(&self) -> &dyn CausalModel {
        &self.language
    }

    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        one_by_one(&self.image_tokens(pixels)?)
    }

    // The system that answers has its changes of low rank; the one that composes has none.
    fn template(&self) -> &'static str {
        if self.config.lora.is_some() { "xcomposer_vl" } else { "xcomposer" }
    }

    fn instruction(&self, request: &Request) -> String {
        match request {
            Request::Caption(words) => {
                words.unwrap_or("Describe this image in one sentence.").to_owned()
            }
            Request::Answer(question) => (*question).to_owned(),
        }
    }
}

/// The parts of the released files beside the tower, the sampler and the language model.
const BESIDE: &[Name] = &[
    copy("norm.*", "ln_vision.*"),
    copy("projection.*", "internlm_proj.*"),
    copy("ends.start", "flag_image_start").leading(2),
    copy("ends.end", "flag_image_end").leading(2),
];

/// What stands before the language model.
pub(crate) const LANGUAGE: &str = "internlm_model.";

/// Name maps of the released files.
pub fn names() -> Vec<Names> {
    let body = format!("{LANGUAGE}model.");
    let [tables, head] = llama::names_at(&body, LANGUAGE, false);
    vec![
        Names::family(BESIDE, &[]),
        eva_vit::lavis_names("visual_encoder.").under("vision."),
        qformer::lavis_names().under("qformer."),
        llama::lora_names(&body).under("language."),
        tables.under("language."),
        head.under("language."),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn the_published_size_has_its_parameters() {
        let b = Builder::zeros();
        let _model = XComposer::new(&XComposerConfig::variant("vl-7b").unwrap(), &b);
        let parameters = b.finish().unwrap();
        // The released file has 1,480 tensors in 18.58 GB: the language model and the tower in 16 bits,
        // the changes, the sampler, the projection and the flags in 32.
        let bytes: usize = parameters
            .iter()
            .map(|p| {
                let name = p.name();
                let is_half = (name.starts_with("language.") && !name.contains(".lora_"))
                    || name.starts_with("vision.");
                p.elements() * if is_half { 2 } else { 4 }
            })
            .sum();
        assert!((18.4e9..18.7e9).contains(&(bytes as f64)), "{bytes}");
    }
}
