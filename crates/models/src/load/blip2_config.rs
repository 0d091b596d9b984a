//! Configurations of BLIP-2, InstructBLIP and their parts.

use super::fields::Fields;
use super::{Family, Model, causal_config, t5_config};
use crate::connector::qformer::{self, QFormer, QFormerConfig, QFormerTextConfig};
use crate::systems::blip2::{self, Blip2, Blip2Config, MatchingConfig, TowerConfig};
use crate::systems::blip2_writing::{LanguageConfig, WritingConfig};
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use crate::vision::eva_vit::{self, EvaVit, EvaVitConfig};
use crate::vision::position::PositionRule;
use crate::{Error, Result};
use ocelli_data::text::Tokenizer;
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// The family of weights without a configuration, if it is one of these.
pub(super) fn family_of(weights: &Checkpoint) -> Option<Family> {
    let has = |name: &str| weights.info(name).is_some();
    let reads = has("query_tokens") && has("Qformer.bert.embeddings.LayerNorm.weight");
    if reads && has("ln_vision.weight") {
        // MiniGPT-4 has the same parts under another language model.
        let is_minigpt = has("llama_proj.weight");
        Some(if is_minigpt { Family::MiniGpt4 } else { Family::LavisBlip2 })
    } else if has("llama_proj.weight") {
        Some(Family::MiniGpt4)
    } else if reads {
        Some(Family::QFormer)
    } else if has("pos_embed") && has("blocks.0.attn.q_bias") {
        Some(Family::EvaVit)
    } else if has("positional_embedding") && has("ln_pre.weight") {
        Some(Family::LavisClipVit)
    } else {
        None
    }
}

/// Builds a model of one of these families.
pub(super) fn open(
    family: Family,
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let builder = |names: &Vec<Names>| Builder::load(Arc::clone(weights), names.clone());
    match family {
        Family::EvaVit => {
            let names = vec![eva_vit::lavis_names("")];
            let b = builder(&names);
            let model = EvaVit::new(&sizes.eva("", &f)?, &b);
            Ok((Model::EvaVit(Box::new(model)), b.finish()?, names))
        }
        Family::LavisClipVit => {
            let names = vec![blip2::lavis_clip_names("")];
            let b = builder(&names);
            let model = ClipVit::trunk(&sizes.clip("", &f)?, &b);
            Ok((Model::ClipVit(Box::new(model)), b.finish()?, names))
        }
        Family::QFormer => {
            let names = vec![qformer::lavis_names()];
            let b = builder(&names);
            let model = QFormer::new(&sizes.qformer(&f)?, &b);
            Ok((Model::QFormer(Box::new(model)), b.finish()?, names))
        }
        _ => {
            let sizes = transformers(config, weights, file)?;
            let names = blip2::transformers_names(&sizes, family == Family::InstructBlip);
            let b = builder(&names);
            let mut model = Blip2::new(&sizes, &b);
            if family == Family::InstructBlip {
                model = with_instructions(model, file.parent().unwrap_or(Path::new(".")))?;
            }
            Ok((Model::Blip2(Box::new(model)), b.finish()?, names))
        }
    }
}

/// The model with the tokenizer of the instructions that queries read, if that lies in `dir`.
pub(super) fn with_instructions(model: Blip2, dir: &Path) -> Result<Blip2> {
    let tokenizer = dir.join("qformer_tokenizer");
    if !tokenizer.is_dir() {
        return Ok(model);
    }
    let tokenizer = Tokenizer::from_dir(&tokenizer).map_err(ocelli_data::Error::from)?;
    Ok(model.with_instructions(tokenizer))
}

/// Height and width of the pictures that a model sees, in pixels.
pub(super) fn image_size(
    family: Family,
    config: &Value,
    weights: &dyn Fn() -> Result<Checkpoint>,
) -> Result<(usize, usize)> {
    // The file has no tensors to name where it says nothing of its tower.
    let file = Path::new("config.json");
    if family != Family::LavisBlip2 {
        return Fields::new(config, file).section("vision_config").sides("image_size", USUAL_SIZE);
    }
    let weights = weights()?;
    let (sizes, nothing) = (Sizes::new(&weights, file), Value::Null);
    let (f, prefix) = (Fields::new(&nothing, file), "visual_encoder.");
    if weights.info("visual_encoder.pos_embed").is_some() {
        Ok(sizes.eva(prefix, &f)?.image_size)
    } else if weights.info("visual_encoder.conv1.weight").is_some() {
        Ok(sizes.clip(prefix, &f)?.image_size)
    } else {
        // The frozen towers.
        Ok((USUAL_SIZE, USUAL_SIZE))
    }
}

/// Side of the pictures that the towers were made for, in pixels.
const USUAL_SIZE: usize = 224;

/// Tokens of a text that the Q-Former reads at most.
pub(super) fn context_length(config: &Value, file: &Path) -> Result<usize> {
    let f = Fields::new(config, file);
    let name = if f.get("qformer").is_some() { "qformer" } else { "qformer_config" };
    f.section(name).size("max_position_embeddings", Some(512))
}

/// `config.json` of transformers' BLIP-2 and InstructBLIP; which heads there are is for the weights
/// to say.
pub(super) fn transformers(
    config: &Value,
    weights: &Checkpoint,
    file: &Path,
) -> Result<Blip2Config> {
    let root = Fields::new(config, file);
    let f = root.section("vision_config");
    let width = f.size("hidden_size", Some(1408))?;
    let eva = EvaVitConfig {
        image_size: f.sides("image_size", 224)?,
        patch_size: f.size("patch_size", Some(14))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(39))?,
        heads: f.heads("num_attention_heads", width, Some(16))?,
        mlp_dim: f.size("intermediate_size", Some(6144))?,
        activation: f.activation("hidden_act", "gelu")?,
        norm_eps: f.epsilon("layer_norm_eps", 1e-6)?,
    };
    let norm_eps = eva.norm_eps;
    let f = root.section("qformer_config");
    let has = |name: &str| weights.info(name).is_some();
    let reads_text = ["", "qformer."]
        .iter()
        .any(|prefix| has(&format!("{prefix}embeddings.word_embeddings.weight")));
    let text = QFormerTextConfig {
        vocab: f.size("vocab_size", Some(30_522))?,
        context_length: f.size("max_position_embeddings", Some(512))?,
        has_language_head: false,
    };
    let q_width = f.size("hidden_size", Some(768))?;
    let qformer = QFormerConfig {
        queries: root.size("num_query_tokens", Some(32))?,
        width: q_width,
        depth: f.blocks("num_hidden_layers", Some(12))?,
        heads: f.heads("num_attention_heads", q_width, Some(12))?,
        mlp_dim: f.size("intermediate_size", Some(3072))?,
        activation: f.activation("hidden_act", "gelu")?,
        norm_eps: f.epsilon("layer_norm_eps", 1e-12)?,
        memory_width: width,
        cross_every: f.size("cross_attention_frequency", Some(2))?,
        text: reads_text.then_some(text),
    };
    let matching = MatchingConfig {
        embed_dim: root.size("image_text_hidden_size", Some(256))?,
        has_temperature: false,
    };
    let matching = has("itm_head.weight").then_some(matching);
    let writing = if has("language_projection.weight") {
        let is_causal = root.flag("use_decoder_only_language_model", true)?;
        let usual = if is_causal { "opt" } else { "t5" };
        let image_id = root.get("image_token_index").map(|_| root.id("image_token_index", 0));
        let has_head = has("language_model.lm_head.weight");
        Some(writing(&root.section("text_config"), usual, has_head, image_id.transpose()?)?)
    } else {
        None
    };
    Ok(Blip2Config { vision: TowerConfig::Eva(eva), norm_eps, qformer, matching, writing })
}

/// The language model that `f` describes, of the `usual` kind if it does not say, and the ids that it
/// is spoken to with.
pub(super) fn writing(
    f: &Fields,
    usual: &str,
    has_head: bool,
    image_id: Option<u32>,
) -> Result<WritingConfig> {
    let (language, vocab, [bos, eos, pad]) = match f.text("model_type").unwrap_or(usual) {
        "opt" => {
            let c = causal_config::opt(f)?;
            (LanguageConfig::Opt(c.clone()), c.vocab, [2, 2, 1])
        }
        "llama" => {
            let c = causal_config::llama(f)?;
            (LanguageConfig::Llama(c.clone()), c.vocab, [1, 2, 0])
        }
        "t5" => {
            let c = t5_config::transformers(f, has_head)?;
            (LanguageConfig::T5(c.clone()), c.vocab, [1, 1, 0])
        }
        other => {
            let reason = format!("expected opt, llama or t5, got `{other}`");
            return Err(f.error("model_type", reason));
        }
    };
    Ok(WritingConfig {
        language,
        // Old files have no such id; any that no text has will do.
        image_id: image_id.unwrap_or(vocab as u32),
        bos_id: f.id("bos_token_id", bos)?,
        eos_ids: vec![f.id("eos_token_id", eos)?],
        pad_id: f.id("pad_token_id", pad)?,
    })
}

/// Sizes that are read from tensors, as LAVIS writes no configuration beside them.
pub(super) struct Sizes<'a> {
    weights: &'a Checkpoint,
    file: &'a Path,
}

/// Blocks that are looked for in a file without a configuration.
const MOST_BLOCKS: usize = 1000;

impl<'a> Sizes<'a> {
    pub(super) fn new(weights: &'a Checkpoint, file: &'a Path) -> Self {
        Self { weights, file }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.info(name).is_some()
    }

    /// The lengths of the last `N` axes of a tensor.
    pub(super) fn axes<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let error = |reason: String| {
            let (file, field) = (self.file.to_owned(), name.to_owned());
            Error::Config { file, field, reason }
        };
        let (_, shape) = self.weights.info(name).ok_or_else(|| {
            error("the tensor is missing; expected a checkpoint in the layout of LAVIS".to_owned())
        })?;
        let last = shape.len().checked_sub(N).map(|at| &shape[at..]);
        last.and_then(|axes| axes.try_into().ok())
            .ok_or_else(|| error(format!("expected a tensor of {N} axes, found {shape:?}")))
    }

    pub(super) fn count(&self, before: &str, after: &str) -> usize {
        let found = |i: &usize| self.has(&format!("{before}{i}{after}"));
        (0..MOST_BLOCKS).take_while(found).count()
    }

    /// Side of a picture of so many tokens, the class token among them.
    pub(super) fn image_size(tokens: usize, patch_size: usize) -> (usize, usize) {
        let side = (tokens.saturating_sub(1) as f64).sqrt().round() as usize * patch_size;
        (side, side)
    }

    /// Heads that divide `width`: as configured, or of the published model.
    pub(super) fn heads(
        f: &Fields,
        fields: [&str; 2],
        width: usize,
        usual: usize,
    ) -> Result<usize> {
        let field = if f.get(fields[0]).is_some() { fields[0] } else { fields[1] };
        f.heads(field, width, Some(usual))
    }

    /// EVA-CLIP's tower whose names follow `prefix`; `f` may tell heads and epsilon.
    pub(super) fn eva(&self, prefix: &str, f: &Fields) -> Result<EvaVitConfig> {
        let name = |name: &str| format!("{prefix}{name}");
        let [width, _, patch_size, _] = self.axes(&name("patch_embed.proj.weight"))?;
        let [tokens, _] = self.axes(&name("pos_embed"))?;
        let [mlp_dim, _] = self.axes(&name("blocks.0.mlp.fc1.weight"))?;
        Ok(EvaVitConfig {
            image_size: Self::image_size(tokens, patch_size),
            patch_size,
            width,
            depth: self.count(&name("blocks."), ".norm1.weight"),
            heads: Self::heads(f, ["num_heads", "heads"], width, 16)?,
            mlp_dim,
            activation: Activation::Gelu,
            norm_eps: f.epsilon("norm_eps", 1e-6)?,
        })
    }

    /// CLIP's tower whose names follow `prefix`; `f` may tell heads, activation and epsilon.
    pub(super) fn clip(&self, prefix: &str, f: &Fields) -> Result<ClipVitConfig> {
        let name = |name: &str| format!("{prefix}{name}");
        let [width, _, patch_size, _] = self.axes(&name("conv1.weight"))?;
        let [tokens, _] = self.axes(&name("positional_embedding"))?;
        let [mlp_dim, _] = self.axes(&name("transformer.resblocks.0.mlp.c_fc.weight"))?;
        let quick_gelu = match f.text("act").unwrap_or("quick_gelu") {
            "quick_gelu" => true,
            "gelu" => false,
            other => {
                let reason = format!("expected quick_gelu or gelu, got `{other}`");
                return Err(f.error("act", reason));
            }
        };
        Ok(ClipVitConfig {
            image_size: Self::image_size(tokens, patch_size),
            patch_size,
            width,
            depth: self.count(&name("transformer.resblocks."), ".ln_1.weight"),
            heads: Self::heads(f, ["num_heads", "heads"], width, (width / 64).max(1))?,
            mlp_dim,
            quick_gelu,
            norm_eps: f.epsilon("norm_eps", 1e-5)?,
            position_rule: PositionRule::Lavis,
        })
    }

    /// The Q-Former; `f` may tell heads and epsilon.
    pub(super) fn qformer(&self, f: &Fields) -> Result<QFormerConfig> {
        let layer = "Qformer.bert.encoder.layer.";
        let [queries, width] = self.axes("query_tokens")?;
        let [_, memory_width] = self.axes(&format!("{layer}0.crossattention.self.key.weight"))?;
        let [mlp_dim, _] = self.axes(&format!("{layer}0.intermediate_query.dense.weight"))?;
        let depth = self.count(layer, ".attention.self.query.weight");
        let has_cross = |i: usize| self.has(&format!("{layer}{i}.crossattention.self.key.weight"));
        let text = if self.has("Qformer.bert.embeddings.word_embeddings.weight") {
            let [vocab, _] = self.axes("Qformer.bert.embeddings.word_embeddings.weight")?;
            let [context_length, _] =
                self.axes("Qformer.bert.embeddings.position_embeddings.weight")?;
            let has_language_head = self.has("Qformer.cls.predictions.transform.dense.weight");
            Some(QFormerTextConfig { vocab, context_length, has_language_head })
        } else {
            None
        };
        Ok(QFormerConfig {
            queries,
            width,
            depth,
            heads: Self::heads(f, ["num_attention_heads", "heads"], width, (width / 64).max(1))?,
            mlp_dim,
            activation: f.activation("hidden_act", "gelu")?,
            norm_eps: f.epsilon("layer_norm_eps", 1e-12)?,
            memory_width,
            cross_every: (1..depth).find(|i| has_cross(*i)).unwrap_or(depth.max(1)),
            text,
        })
    }

    /// A whole model of these parts; `f` may hold what tensors do not tell.
    pub(super) fn blip2(
        &self,
        f: &Fields,
        vision: TowerConfig,
        writing: Option<WritingConfig>,
    ) -> Result<Blip2Config> {
        let matching = if self.has("itm_head.weight") {
            let [embed_dim, _] = self.axes("vision_proj.weight")?;
            Some(MatchingConfig { embed_dim, has_temperature: self.has("temp") })
        } else {
            None
        };
        Ok(Blip2Config {
            vision,
            norm_eps: f.epsilon("ln_vision_eps", 1e-5)?,
            qformer: self.qformer(&f.section("qformer"))?,
            matching,
            writing,
        })
    }
}
