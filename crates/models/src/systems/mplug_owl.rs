//! mPLUG-Owl: CLIP's tower, a visual abstractor and a LLaMA.
//!
//! Ye et al. 2023, "mPLUG-Owl: Modularization Empowers Large Language Models with Multimodality",
//! arXiv:2304.14178, §3.1. The tower is trained too, in the first stage; then the language model is
//! changed by a low rank, which the released files have merged or beside them.

use crate::Result;
use crate::connector::abstractor::{self, Abstractor, AbstractorConfig};
use crate::connector::qformer::Memory;
use crate::language::causal::CausalModel;
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::systems::talker::{Talker, one_by_one};
use crate::systems::writer::Request;
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use crate::vision::position::PositionRule;
use ocelli_nn::layers::LayerNorm;
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::Tensor;

/// Parts of an mPLUG-Owl.
#[derive(Clone, Debug, PartialEq)]
pub struct MplugOwlConfig {
    /// The tower.
    pub vision: ClipVitConfig,
    /// What reads it.
    pub abstractor: AbstractorConfig,
    /// The language model.
    pub text: LlamaConfig,
}

impl MplugOwlConfig {
    /// The published system, `"7b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let text = LlamaConfig::variant(name).filter(|_| name == "7b")?;
        let vision = ClipVitConfig {
            image_size: (224, 224),
            patch_size: 14,
            width: 1024,
            depth: 24,
            heads: 16,
            mlp_dim: 4096,
            quick_gelu: true,
            norm_eps: 1e-6,
            position_rule: PositionRule::Transformers,
        };
        let abstractor = AbstractorConfig::base(vision.width, text.width);
        // Of the first LLaMA, not of the second.
        let text = LlamaConfig { context_length: 2048, norm_eps: 1e-6, ..text };
        Some(Self { vision, abstractor, text })
    }
}

/// mPLUG-Owl.
#[derive(Debug)]
pub struct MplugOwl {
    config: MplugOwlConfig,
    vision: ClipVit,
    norm: LayerNorm,
    queries: Parameter,
    abstractor: Abstractor,
    language: Llama,
}

impl MplugOwl {
    /// A model whose parameters come from `b`.
    pub fn new(config: &MplugOwlConfig, b: &Builder) -> Self {
        let c = config;
        let shape = [c.abstractor.queries, c.abstractor.width];
        Self {
            vision: ClipVit::trunk(&c.vision, &b.at("vision")),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width, c.vision.norm_eps),
            queries: b.at("abstractor").parameter("queries", &shape, Init::Normal(0.02)),
            abstractor: Abstractor::new(&c.abstractor, &b.at("abstractor")),
            language: Llama::new(&c.text, &b.at("language")),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &MplugOwlConfig {
        &self.config
    }

    /// What the abstractor reads of normalised `pixels` `[batch, 3, img_h, img_w]`: all tokens of the
    /// tower, the class token among them, `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn seen(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.vision.features(pixels)?)?)
    }

    /// What the language model reads of normalised `pixels`, `[batch, image tokens, width]`.
    ///
    /// # Errors
    /// As for [`MplugOwl::seen`].
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        let memory = Memory::from(self.seen(pixels)?);
        self.abstractor.forward(&self.queries.tensor(), &memory)
    }
}

impl Talker for MplugOwl {
    fn language(&self) -> &dyn CausalModel {
        &self.language
    }

    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        one_by_one(&self.image_tokens(pixels)?)
    }

    fn template(&self) -> &'static str {
        "mplug_owl"
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

/// The tower of the original files.
const TOWER: &[Name] = &[
    copy("class", "vision_model.embeddings.cls_token").leading(2),
    copy("patch.weight", "vision_model.embeddings.patch_embed.weight"),
    copy("position", "vision_model.embeddings.position_embedding").leading(1),
    copy("norm_pre.*", "vision_model.embeddings.pre_layernorm.*"),
    copy("blocks.*.norm1.*", "vision_model.encoder.layers.*.input_layernorm.*"),
    copy("blocks.*.attn.qkv.*", "vision_model.encoder.layers.*.self_attn.query_key_value.*")
        .head_by_head(),
    copy("blocks.*.attn.out.*", "vision_model.encoder.layers.*.self_attn.dense.*"),
    copy("blocks.*.norm2.*", "vision_model.encoder.layers.*.post_attention_layernorm.*"),
    copy("blocks.*.mlp.up.*", "vision_model.encoder.layers.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "vision_model.encoder.layers.*.mlp.fc2.*"),
];

/// What is beside the parts.
const BESIDE: &[Name] = &[
    copy("norm.*", "vision_model.post_layernorm.*"),
    copy("abstractor.queries", "query_tokens").leading(1),
];

/// Name maps of the original files.
pub fn names(config: &MplugOwlConfig) -> Vec<Names> {
    let [body, head] =
        llama::names_at("language_model.model.", "language_model.", config.text.has_tied_head);
    let head_dim = config.vision.width / config.vision.heads.max(1);
    vec![
        Names::family(BESIDE, &[]),
        Names::family(TOWER, &[]).with_head_dim(head_dim).under("vision."),
        abstractor::names("abstractor.").under("abstractor."),
        body.under("language."),
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
        let _model = MplugOwl::new(&MplugOwlConfig::variant("7b").unwrap(), &b);
        // The paper says 7.2 B (Table 1).
        let parameters = b.finish().unwrap().elements();
        assert!((7.1e9..7.25e9).contains(&(parameters as f64)), "{parameters}");
        assert!(MplugOwlConfig::variant("13b").is_none());
    }
}
