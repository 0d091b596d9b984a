//! Qwen-VL: a large CLIP tower, a position-aware adapter and a Qwen.
//!
//! Bai et al. 2023, "Qwen-VL: A Versatile Vision-Language Model for Understanding, Localization, Text
//! Reading, and Beyond", arXiv:2308.12966, §2.

use crate::Result;
use crate::connector::position_resampler::{self, PositionResampler, PositionResamplerConfig};
use crate::language::causal::CausalModel;
use crate::language::qwen::{self, Qwen, QwenConfig};
use crate::systems::talker::{Reading, Talker, one_by_one};
use crate::systems::writer::Request;
use crate::vision::qwen_vit::{self, NORM_EPS, QwenVit, QwenVitConfig};
use ocelli_data::text::BoxNotation;
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, copy, transpose};
use ocelli_tensor::Tensor;

/// Parts of a Qwen-VL.
#[derive(Clone, Debug, PartialEq)]
pub struct QwenVlConfig {
    /// The tower.
    pub vision: QwenVitConfig,
    /// What reads it.
    pub resampler: PositionResamplerConfig,
    /// The language model.
    pub text: QwenConfig,
    /// Whether it was tuned to talk, as Qwen-VL-Chat.
    pub is_chat: bool,
}

impl QwenVlConfig {
    /// The published system, `"7b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let text = QwenConfig::variant(name)?;
        let vision = QwenVitConfig::variant("bigG/14")?;
        let width = text.llama.width;
        let resampler = PositionResamplerConfig {
            queries: 256,
            width,
            heads: width / 128,
            memory_width: vision.width,
            norm_eps: NORM_EPS,
        };
        Some(Self { vision, resampler, text, is_chat: true })
    }
}

/// Qwen-VL.
#[derive(Debug)]
pub struct QwenVl {
    config: QwenVlConfig,
    vision: QwenVit,
    resampler: PositionResampler,
    norm: LayerNorm,
    projection: Linear,
    language: Qwen,
}

impl QwenVl {
    /// A model whose parameters come from `b`.
    pub fn new(config: &QwenVlConfig, b: &Builder) -> Self {
        let c = config;
        let width = c.resampler.width;
        let init = Init::Normal((width as f32).powf(-0.5));
        Self {
            vision: QwenVit::new(&c.vision, &b.at("vision")),
            resampler: PositionResampler::new(&c.resampler, &b.at("resampler")),
            norm: LayerNorm::new(&b.at("norm"), width, NORM_EPS),
            projection: Linear::new(&b.at("projection"), width, width, false, init),
            language: Qwen::new(&c.text, &b.at("language")),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &QwenVlConfig {
        &self.config
    }

    /// What reads the tower.
    pub fn resampler(&self) -> &PositionResampler {
        &self.resampler
    }

    /// What the adapter reads of normalised `pixels` `[batch, 3, img_h, img_w]`,
    /// `[batch, queries, width]`.
    ///
    /// # Errors
    /// If the channels differ or the picture is no square of patches.
    pub fn read(&self, pixels: &Tensor) -> Result<Tensor> {
        self.resampler.forward(&self.vision.forward(pixels)?)
    }

    /// What the language model reads of normalised `pixels`, `[batch, queries, width]`.
    ///
    /// # Errors
    /// As for [`QwenVl::read`].
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.projection.forward(&self.norm.forward(&self.read(pixels)?)?)?)
    }
}

impl Talker for QwenVl {
    fn language(&self) -> &dyn CausalModel {
        &self.language
    }

    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        one_by_one(&self.image_tokens(pixels)?)
    }

    fn template(&self) -> &'static str {
        if self.config.is_chat { "qwen_vl" } else { "qwen_vl_base" }
    }

    fn reading(&self) -> Reading {
        Reading { goes_on: true, around: None }
    }

    fn boxes(&self) -> Option<&'static BoxNotation> {
        Some(&BoxNotation::QWEN_VL)
    }

    // As its evaluation asks (§4.1 and the released scripts).
    fn instruction(&self, request: &Request) -> String {
        let is_chat = self.config.is_chat;
        match request {
            Request::Caption(Some(words)) => (*words).to_owned(),
            Request::Caption(None) => "Describe the image in English:".to_owned(),
            Request::Answer(question) if is_chat => (*question).to_owned(),
            Request::Answer(question) => format!("{question} Answer:"),
        }
    }
}

/// What stands before the tower and its adapter.
pub(crate) const VISUAL: &str = "transformer.visual.";

/// What is beside the parts.
const BESIDE: &[Name] = &[
    copy("norm.*", "transformer.visual.ln_post.*"),
    transpose("projection.weight", "transformer.visual.proj", 1),
];

/// Name maps of the original files.
pub fn names(config: &QwenVlConfig) -> Vec<Names> {
    vec![
        Names::family(BESIDE, &[]),
        qwen_vit::names(&config.vision, VISUAL).under("vision."),
        position_resampler::names("transformer.visual.attn_pool.").under("resampler."),
        qwen::names().under("language."),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn the_published_size_has_its_parameters() {
        let b = Builder::zeros();
        let _model = QwenVl::new(&QwenVlConfig::variant("7b").unwrap(), &b);
        let parameters = b.finish().unwrap();
        let part = |prefix: &str| -> usize {
            let of = parameters.iter().filter(|p| p.name().starts_with(prefix));
            of.map(ocelli_nn::Parameter::elements).sum()
        };
        // The paper says 1.9 B, 0.08 B, 7.7 B and 9.6 B (Table 1).
        let near = |parameters: usize, published: f64, digits: f64| {
            assert!((parameters as f64 / 1e9 - published).abs() <= digits, "{parameters}");
        };
        near(part("vision."), 1.9, 0.06);
        near(part("resampler."), 0.08, 0.005);
        near(part("language."), 7.7, 0.06);
        near(parameters.elements(), 9.6, 0.1);
    }
}
