//! VisualGLM: EVA-CLIP's tower, a Q-Former, one linear layer and a `ChatGLM`.
//!
//! Described in the repository of VisualGLM-6B (THUDM 2023) alone; the parts are those of BLIP-2 (Li et
//! al. 2023, arXiv:2301.12597) and of `ChatGLM`. A conversation has one picture, before everything.

use crate::Result;
use crate::connector::qformer::{QFormer, QFormerConfig};
use crate::connector::splice::IMAGE;
use crate::language::causal::CausalModel;
use crate::language::chatglm::{self, ChatGlm, ChatGlmConfig};
use crate::systems::talker::{Talker, one_by_one};
use crate::systems::writer::Request;
use crate::vision::eva_vit::{EvaVit, EvaVitConfig};
use ocelli_data::text::{IMAGE_MARK, Tokenizer};
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, copy};
use ocelli_tensor::Tensor;

/// What sees.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageEncoderConfig {
    /// The tower.
    pub vision: EvaVitConfig,
    /// Epsilon of the norm behind the tower.
    pub norm_eps: f32,
    /// What reads it.
    pub qformer: QFormerConfig,
    /// Width of a word of the language model.
    pub text_width: usize,
}

/// Parts of a VisualGLM.
#[derive(Clone, Debug, PartialEq)]
pub struct VisualGlmConfig {
    /// What sees.
    pub eyes: ImageEncoderConfig,
    /// The language model.
    pub text: ChatGlmConfig,
}

impl VisualGlmConfig {
    /// The published system, `"6b"`.
    pub fn variant(name: &str) -> Option<Self> {
        let text = ChatGlmConfig::variant(name)?;
        let vision = EvaVitConfig::variant("g/14")?;
        let qformer = QFormerConfig::base(vision.width);
        let eyes = ImageEncoderConfig { vision, norm_eps: 1e-5, qformer, text_width: text.width };
        Some(Self { eyes, text })
    }
}

/// What sees: the tower, the Q-Former and the layer behind them.
#[derive(Debug)]
pub struct ImageEncoder {
    vision: EvaVit,
    norm: LayerNorm,
    qformer: QFormer,
    projection: Linear,
}

impl ImageEncoder {
    /// An encoder whose parameters come from `b`.
    pub fn new(config: &ImageEncoderConfig, b: &Builder) -> Self {
        let c = config;
        let init = Init::Uniform((c.qformer.width as f32).powf(-0.5));
        Self {
            vision: EvaVit::new(&c.vision, &b.at("vision")),
            norm: LayerNorm::new(&b.at("norm"), c.vision.width, c.norm_eps),
            qformer: QFormer::new(&c.qformer, &b.at("qformer")),
            projection: Linear::new(&b.at("projection"), c.qformer.width, c.text_width, true, init),
        }
    }

    /// What the Q-Former reads of normalised `pixels` `[batch, 3, img_h, img_w]`,
    /// `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn seen(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(&self.vision.forward(pixels)?)?)
    }

    /// What the queries read of normalised `pixels`, `[batch, queries, width]`.
    ///
    /// # Errors
    /// As for [`ImageEncoder::seen`].
    pub fn read(&self, pixels: &Tensor) -> Result<Tensor> {
        self.qformer.forward(&self.seen(pixels)?.into())
    }

    /// What the language model reads of normalised `pixels`, `[batch, queries, text_width]`.
    ///
    /// # Errors
    /// As for [`ImageEncoder::seen`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.projection.forward(&self.read(pixels)?)?)
    }
}

/// VisualGLM.
#[derive(Debug)]
pub struct VisualGlm {
    config: VisualGlmConfig,
    eyes: ImageEncoder,
    language: ChatGlm,
}

impl VisualGlm {
    /// A model whose parameters come from `b`.
    pub fn new(config: &VisualGlmConfig, b: &Builder) -> Self {
        Self {
            eyes: ImageEncoder::new(&config.eyes, b),
            language: ChatGlm::new(&config.text, &b.at("language")),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &VisualGlmConfig {
        &self.config
    }

    /// What sees.
    pub fn eyes(&self) -> &ImageEncoder {
        &self.eyes
    }

    /// The language model.
    pub fn chatglm(&self) -> &ChatGlm {
        &self.language
    }
}

impl Talker for VisualGlm {
    fn language(&self) -> &dyn CausalModel {
        &self.language
    }

    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        one_by_one(&self.eyes.forward(pixels)?)
    }

    fn template(&self) -> &'static str {
        "visualglm"
    }

    // Each piece is read by itself; what is asked ends with the mask and the start of the answer.
    fn ids(&self, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for (i, words) in text.split(IMAGE_MARK).enumerate() {
            ids.extend((i > 0).then_some(IMAGE));
            ids.extend(tokenizer.encode(words, false));
        }
        ids.extend(self.config.text.answer_ids);
        ids
    }

    fn instruction(&self, request: &Request) -> String {
        match request {
            // The question of the demonstration: what is in the picture?
            Request::Caption(words) => words.unwrap_or("描述这张图片。").to_owned(),
            Request::Answer(question) => (*question).to_owned(),
        }
    }
}

/// The tower as `SwissArmyTransformer` names it; `~` is what stands before the encoder.
const TOWER: &[Name] = &[
    copy("class", "~vit.transformer.word_embeddings.weight").leading(1),
    copy("position", "~vit.transformer.position_embeddings.weight"),
    copy("patch.*", "~vit.mixins.patch_embedding.proj.*"),
    copy("blocks.*.norm1.*", "~vit.transformer.layers.*.input_layernorm.*"),
    copy("blocks.*.attn.qkv.*", "~vit.transformer.layers.*.attention.query_key_value.*"),
    copy("blocks.*.attn.out.*", "~vit.transformer.layers.*.attention.dense.*"),
    copy("blocks.*.norm2.*", "~vit.transformer.layers.*.post_attention_layernorm.*"),
    copy("blocks.*.mlp.up.*", "~vit.transformer.layers.*.mlp.dense_h_to_4h.*"),
    copy("blocks.*.mlp.down.*", "~vit.transformer.layers.*.mlp.dense_4h_to_h.*"),
];

/// The Q-Former, where the norm behind a block is the one before the next.
const QFORMER: &[Name] = &[
    copy("queries", "~qformer.transformer.word_embeddings.weight"),
    copy("norm.*", "~qformer.transformer.layers.0.input_layernorm.*"),
    copy("blocks.*.attn.qkv.*", "~qformer.transformer.layers.*.attention.query_key_value.*"),
    copy("blocks.*.attn.out.*", "~qformer.transformer.layers.*.attention.dense.*"),
    copy("blocks.*.norm.*", "~qformer.transformer.layers.*.post_attention_layernorm.*"),
    copy("blocks.*.cross.q.*", "~qformer.transformer.layers.*.cross_attention.query.*"),
    copy("blocks.*.cross.k.*", "~qformer.transformer.layers.*.cross_attention.key_value.*")
        .part(0, 2),
    copy("blocks.*.cross.v.*", "~qformer.transformer.layers.*.cross_attention.key_value.*")
        .part(1, 2),
    copy("blocks.*.cross.out.*", "~qformer.transformer.layers.*.cross_attention.dense.*"),
    copy("blocks.*.cross_norm.*", "~qformer.transformer.layers.*.post_cross_attention_layernorm.*"),
    copy("blocks.*.query_mlp.up.*", "~qformer.transformer.layers.*.mlp.dense_h_to_4h.*"),
    copy("blocks.*.query_mlp.down.*", "~qformer.transformer.layers.*.mlp.dense_4h_to_h.*"),
    copy("blocks.$.query_norm.*", "~qformer.transformer.final_layernorm.*"),
    copy("blocks.*.query_norm.*", "~qformer.transformer.layers.+.input_layernorm.*"),
];

/// What is beside them.
const BESIDE: &[Name] =
    &[copy("norm.*", "~vit.mixins.cls.ln_vision.*"), copy("projection.*", "~glm_proj.*")];

/// Name maps of the encoder; `prefix` stands before its names.
pub fn encoder_names(config: &ImageEncoderConfig, prefix: &str) -> Vec<Names> {
    vec![
        Names::family(BESIDE, &[]).with_prefix(prefix),
        Names::family(TOWER, &[]).with_prefix(prefix).under("vision."),
        Names::family(QFORMER, &[])
            .with_prefix(prefix)
            .with_depth(config.qformer.depth)
            .under("qformer."),
    ]
}

/// Name maps of the released files.
pub fn names(config: &VisualGlmConfig) -> Vec<Names> {
    let mut names = encoder_names(&config.eyes, "image_encoder.");
    names.push(chatglm::names(&config.text).under("language."));
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn the_published_size_has_its_parameters() {
        let b = Builder::zeros();
        let _model = VisualGlm::new(&VisualGlmConfig::variant("6b").unwrap(), &b);
        // The repository says 7.8 B; 7,802,196,224 with the head, one more norm of the tower's width than
        // here.
        assert_eq!(b.finish().unwrap().elements(), 7_802_196_224 - 2 * 1408);
    }
}
