//! Models of which only names and shapes of tensors are known: the family and the configuration are
//! read from those, and no weights are needed.

use super::blip2_config::Sizes;
use super::llava_config::{LANGUAGE, PROJECTOR, TOWER};
use super::{Family, Files, HeadCounts, Opened, minigpt4_config, read_json};
use crate::language::llama::LlamaConfig;
use crate::{Error, Result};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_tensor::BlockKind;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// A model without values.
#[derive(Debug)]
pub struct Inventory {
    /// The model; its parameters are zeros that nobody has asked for.
    pub opened: Opened,
    /// Tensors of the file.
    pub tensors: usize,
    /// Values of all of them.
    pub elements: usize,
    /// Tensors that carry nothing the model needs.
    pub unneeded: Vec<String>,
    /// What the file itself says of `tensors` and `elements`, if it does.
    pub stated: [Option<usize>; 2],
}

/// Tensors that a file may list at most.
const MOST_TENSORS: usize = 1 << 20;

/// Builds the model of a list of tensors: JSON, `keys` of names with `shape`, where `{i}` in a name
/// stands for the numbers that `i` gives, `"0..11"` or a list. Weights of linear layers count as blocks
/// of `quant` if it is given.
///
/// # Errors
/// If the file cannot be read, no family has such tensors, or a tensor is missing, left over or of
/// another shape.
pub fn inventory(file: &Path, quant: Option<BlockKind>) -> Result<Inventory> {
    let value = read_json(file)?;
    let shapes = shapes(&value, file)?;
    let tensors = shapes.len();
    let size = |shape: &Vec<usize>| shape.iter().fold(1_usize, |n, axis| n.saturating_mul(*axis));
    let elements = shapes.values().map(size).fold(0, usize::saturating_add);
    let weights = Checkpoint::of_shapes(file, shapes)?;
    let weights = Arc::new(match quant {
        Some(kind) => weights.quantised(kind),
        None => weights,
    });
    let (family, config) = recognise(&weights, file)?;
    let files = Files { path: file.to_owned(), config, ..Files::of_family(family) };
    let opened = files.open_weights(&weights, HeadCounts::default())?;
    let used: BTreeSet<String> = (opened.parameters.iter())
        .flat_map(|p| ocelli_nn::Names::stored(&opened.names, p.name()))
        .collect();
    let unneeded = weights.names().filter(|n| !used.contains(*n)).map(str::to_owned).collect();
    let stated = ["tensors", "elements"].map(|key| value.get(key)?.as_u64().map(|n| n as usize));
    Ok(Inventory { opened, tensors, elements, unneeded, stated })
}

/// All names with their shapes.
fn shapes(value: &Value, file: &Path) -> Result<BTreeMap<String, Vec<usize>>> {
    let error = |field: &str, reason: &str| Error::Config {
        file: file.to_owned(),
        field: field.to_owned(),
        reason: reason.to_owned(),
    };
    let keys = value.get("keys").and_then(Value::as_object).ok_or_else(|| {
        error("keys", "is missing; expected names of tensors, each with its shape")
    })?;
    let mut shapes = BTreeMap::new();
    for (name, entry) in keys {
        let axes = entry.get("shape").and_then(Value::as_array);
        let axis = |axis: &Value| axis.as_u64().map(|n| n as usize);
        let shape: Option<Vec<usize>> = axes.and_then(|axes| axes.iter().map(axis).collect());
        let shape = shape.ok_or_else(|| error(name, "expected a shape, a list of numbers"))?;
        let names = expand(name, entry).ok_or_else(|| {
            error(name, "expected numbers for each part in braces, such as \"i\": \"0..11\"")
        })?;
        if shapes.len() + names.len() > MOST_TENSORS {
            return Err(error("keys", "lists more than 1,048,576 tensors"));
        }
        shapes.extend(names.into_iter().map(|name| (name, shape.clone())));
    }
    Ok(shapes)
}

/// The names that a name with parts in braces stands for.
fn expand(name: &str, entry: &Value) -> Option<Vec<String>> {
    let Some((before, rest)) = name.split_once('{') else { return Some(vec![name.to_owned()]) };
    let (part, after) = rest.split_once('}')?;
    let numbers: Vec<usize> = match entry.get(part)? {
        Value::String(range) => {
            let (first, last) = range.split_once("..")?;
            let (first, last) = (first.parse().ok()?, last.parse::<usize>().ok()?);
            (last < MOST_TENSORS).then_some(first..=last)?.collect()
        }
        Value::Array(list) => {
            list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    let mut names = Vec::new();
    for number in numbers {
        names.extend(expand(&format!("{before}{number}{after}"), entry)?);
        if names.len() > MOST_TENSORS {
            return None;
        }
    }
    Some(names)
}

/// The family of tensors, and the configuration that their shapes tell.
fn recognise(weights: &Checkpoint, file: &Path) -> Result<(Family, Value)> {
    let s = Shapes(Sizes::new(weights, file));
    let of = |prefixes: &[&'static str], name: &str| {
        prefixes.iter().copied().find(|p| s.0.has(&format!("{p}{name}")))
    };
    if let Some(projector) = of(&PROJECTOR, "linear_1.weight") {
        return Ok((Family::Llava, s.llava(projector, of)?));
    }
    if let Some(config) = s.original_llava()? {
        return Ok((Family::Llava, config));
    }
    let sees = s.0.has("vision_model.embeddings.class_embedding");
    if sees && s.0.has("query_tokens") {
        let instruct = s.0.has("qformer.embeddings.word_embeddings.weight");
        let family = if instruct { Family::InstructBlip } else { Family::TransformersBlip2 };
        return Ok((family, s.blip2(instruct)?));
    }
    if sees && s.0.has("visual_projection.weight") {
        return Ok((Family::TransformersClip, s.clip()?));
    }
    if sees && let Some(text) = of(&["text_encoder.", "text_decoder.bert."], WORDS) {
        return Ok((Family::TransformersBlip, s.blip(text)?));
    }
    if let Some(family) = Family::of_tensors(weights) {
        let config = if family == Family::MiniGpt4 { s.minigpt4()? } else { Value::Null };
        return Ok((family, config));
    }
    if s.0.has("shared.weight") {
        return Ok((Family::T5, s.t5("")?));
    }
    if let Some(prefix) = of(&["transformer.", ""], "wpe.weight") {
        return Ok((Family::Gpt2, s.gpt2(prefix)?));
    }
    if let Some(prefix) = of(&["model.decoder.", "decoder."], "embed_tokens.weight") {
        return Ok((Family::Opt, s.opt(prefix)?));
    }
    if s.0.has("model.embed_tokens.weight") {
        return Ok((Family::Llama, s.llama("model.", "")?));
    }
    if let Some(prefix) = of(&["vit.", "dinov2.", ""], "embeddings.cls_token") {
        let scaled = s.0.has(&format!("{prefix}encoder.layer.0.layer_scale1.lambda1"));
        let family = if scaled { Family::Dinov2 } else { Family::TransformersVit };
        return Ok((family, s.vit(prefix)?));
    }
    if let Some(prefix) = of(&["bert.", ""], WORDS) {
        let position = format!("{prefix}embeddings.token_type_embeddings.weight");
        let [types, _] = s.0.axes(&position)?;
        let mut config = s.bert(prefix)?;
        config["type_vocab_size"] = types.into();
        return Ok((Family::Bert, config));
    }
    if s.0.has("pos_embed") && s.0.has("blocks.0.attn.qkv.weight") {
        return Ok((Family::TimmVit, s.timm()?));
    }
    let found = format!("{} tensors of no known family", weights.names().count());
    Err(Error::UnknownModel { path: file.to_owned(), found })
}

/// The word table behind the prefix of a BERT.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// Configurations, as transformers writes them, from shapes. Heads change no shape; they are of the
/// usual width.
struct Shapes<'a>(Sizes<'a>);

/// Heads of 64 values where they divide the width.
fn heads(width: usize) -> usize {
    if width.is_multiple_of(64) { width / 64 } else { 1 }
}

impl Shapes<'_> {
    fn axes<const N: usize>(&self, prefix: &str, name: &str) -> Result<[usize; N]> {
        self.0.axes(&format!("{prefix}{name}"))
    }

    fn has(&self, prefix: &str, name: &str) -> bool {
        self.0.has(&format!("{prefix}{name}"))
    }

    fn count(&self, prefix: &str, layers: &str, name: &str) -> usize {
        self.0.count(&format!("{prefix}{layers}"), name)
    }

    /// A tower with names as in `CLIPVisionModel` and in the towers of BLIP.
    fn tower(&self, prefix: &str) -> Result<Value> {
        let [width, _, patch, _] = self.axes(prefix, "embeddings.patch_embedding.weight")?;
        let name = "embeddings.position_embedding";
        let name = if self.has(prefix, name) { name } else { &format!("{name}.weight") };
        let [tokens, _] = self.axes(prefix, name)?;
        let [mlp_dim, _] = self.axes(prefix, "encoder.layers.0.mlp.fc1.weight")?;
        Ok(json!({
            "hidden_size": width,
            "patch_size": patch,
            "image_size": Sizes::image_size(tokens, patch).0,
            "num_hidden_layers": self.count(prefix, "encoder.layers.", ".layer_norm1.weight"),
            "num_attention_heads": if width == EVA_WIDTH { EVA_HEADS } else { heads(width) },
            "intermediate_size": mlp_dim,
        }))
    }

    fn llava(
        &self,
        projector: &str,
        of: impl Fn(&[&'static str], &str) -> Option<&'static str>,
    ) -> Result<Value> {
        let [_, read] = self.axes(projector, "linear_1.weight")?;
        let tower = of(&TOWER, "embeddings.class_embedding").unwrap_or(TOWER[0]);
        let vision = self.tower(tower)?;
        let width = vision["hidden_size"].as_u64().unwrap_or(1) as usize;
        let language = of(&LANGUAGE, "embed_tokens.weight").unwrap_or(LANGUAGE[0]);
        let head = of(&["language_model.", ""], "lm_head.weight").unwrap_or("");
        Ok(json!({
            "vision_config": vision,
            "vision_feature_layer": vec![-2; (read / width).max(1)],
            "multimodal_projector_bias": self.has(projector, "linear_1.bias"),
            "text_config": self.llama(language, head)?,
        }))
    }

    /// The original code's layout, if it is that.
    fn original_llava(&self) -> Result<Option<Value>> {
        let projector = "model.mm_projector.";
        let is_linear = self.has(projector, "weight");
        if !is_linear && !self.has(projector, "0.weight") {
            return Ok(None);
        }
        let mut config = self.llama("model.", "")?;
        let layers = (0..8).filter(|i| self.has(projector, &format!("{i}.weight"))).count();
        let kind = if is_linear { "linear".to_owned() } else { format!("mlp{layers}x_gelu") };
        let first = if is_linear { "weight" } else { "0.weight" };
        let [_, read] = self.axes(projector, first)?;
        config["mm_projector_type"] = kind.into();
        config["mm_hidden_size"] = read.into();
        config["mm_vision_tower"] = "the CLIP that config.json names".into();
        Ok(Some(config))
    }

    /// A LLaMA: `body` stands before `embed_tokens`, `head` before `lm_head`.
    fn llama(&self, body: &str, head: &str) -> Result<Value> {
        let [vocab, width] = self.axes(body, "embed_tokens.weight")?;
        let [q, _] = self.axes(body, "layers.0.self_attn.q_proj.weight")?;
        let [kv, _] = self.axes(body, "layers.0.self_attn.k_proj.weight")?;
        let [mlp_dim, _] = self.axes(body, "layers.0.mlp.gate_proj.weight")?;
        let fits = |dim: &usize| q.is_multiple_of(*dim) && kv.is_multiple_of(*dim);
        let head_dim = [128, 64, 32, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(2);
        let depth = self.count(body, "layers.", ".input_layernorm.weight");
        // No published one of these sizes has its words for a head: where the head is not, it is missing.
        let is_published = ["1.1b", "7b", "13b"]
            .into_iter()
            .filter_map(LlamaConfig::variant)
            .any(|p| (p.width, p.depth, p.mlp_dim) == (width, depth, mlp_dim));
        let has_tied_head = !is_published && !self.has(head, "lm_head.weight");
        Ok(json!({
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": (q / head_dim).max(1),
            "num_key_value_heads": (kv / head_dim).max(1),
            "head_dim": head_dim,
            "intermediate_size": mlp_dim,
            "attention_bias": self.has(body, "layers.0.self_attn.q_proj.bias"),
            "tie_word_embeddings": has_tied_head,
        }))
    }

    /// The language model of a MiniGPT, and what was trained of it; the other parts tell their sizes.
    fn minigpt4(&self) -> Result<Value> {
        let first = "model.layers.0.self_attn.";
        let holds = |p: &&str| self.has(p, &format!("{first}q_proj.weight"));
        let head = minigpt4_config::LANGUAGE.into_iter().find(holds).unwrap_or("llama_model.");
        let mut config = json!({ "llama": self.llama(&format!("{head}model."), head)? });
        let table = |on: &str| format!("{first}{on}.lora_A.weight");
        let on = ["q_proj", "k_proj", "v_proj", "o_proj"];
        let on: Vec<&str> = on.into_iter().filter(|on| self.has(head, &table(on))).collect();
        if let Some(one) = on.first() {
            let [rank, _] = self.axes(head, &table(one))?;
            config["lora"] = json!({ "r": rank, "target_modules": on });
        }
        Ok(config)
    }

    fn opt(&self, prefix: &str) -> Result<Value> {
        let [vocab, word] = self.axes(prefix, "embed_tokens.weight")?;
        let [positions, _] = self.axes(prefix, "embed_positions.weight")?;
        let [mlp_dim, width] = self.axes(prefix, "layers.0.fc1.weight")?;
        Ok(json!({
            "model_type": "opt",
            "vocab_size": vocab,
            // Two rows stand for what is before the first position.
            "max_position_embeddings": positions.saturating_sub(2),
            "word_embed_proj_dim": word,
            "hidden_size": width,
            "num_hidden_layers": self.count(prefix, "layers.", ".fc1.weight"),
            "num_attention_heads": heads(width),
            "ffn_dim": mlp_dim,
            "do_layer_norm_before": self.has(prefix, "final_layer_norm.weight"),
        }))
    }

    fn gpt2(&self, prefix: &str) -> Result<Value> {
        let [vocab, width] = self.axes(prefix, "wte.weight")?;
        let [positions, _] = self.axes(prefix, "wpe.weight")?;
        let [_, mlp_dim] = self.axes(prefix, "h.0.mlp.c_fc.weight")?;
        Ok(json!({
            "vocab_size": vocab,
            "n_positions": positions,
            "n_embd": width,
            "n_layer": self.count(prefix, "h.", ".ln_1.weight"),
            "n_head": heads(width),
            "n_inner": mlp_dim,
        }))
    }

    fn t5(&self, prefix: &str) -> Result<Value> {
        let [vocab, width] = self.axes(prefix, "shared.weight")?;
        let first = "encoder.block.0.layer.";
        let table = format!("{first}0.SelfAttention.relative_attention_bias.weight");
        let [buckets, heads] = self.axes(prefix, &table)?;
        let [inner, _] = self.axes(prefix, &format!("{first}0.SelfAttention.q.weight"))?;
        let [_, mlp_dim] = self.axes(prefix, &format!("{first}1.DenseReluDense.wo.weight"))?;
        let is_gated = self.has(prefix, &format!("{first}1.DenseReluDense.wi_1.weight"));
        Ok(json!({
            "model_type": "t5",
            "vocab_size": vocab,
            "d_model": width,
            "d_kv": inner / heads.max(1),
            "d_ff": mlp_dim,
            "num_heads": heads,
            "num_layers": self.count(prefix, "encoder.block.", ".layer.1.layer_norm.weight"),
            "num_decoder_layers":
                self.count(prefix, "decoder.block.", ".layer.1.layer_norm.weight"),
            "relative_attention_num_buckets": buckets,
            "feed_forward_proj": if is_gated { "gated-gelu" } else { "relu" },
            "tie_word_embeddings": !self.has(prefix, "lm_head.weight"),
        }))
    }

    /// A BERT, with cross-attention or without; `prefix` stands before `embeddings`.
    fn bert(&self, prefix: &str) -> Result<Value> {
        let [vocab, width] = self.axes(prefix, WORDS)?;
        let [positions, _] = self.axes(prefix, "embeddings.position_embeddings.weight")?;
        let [mlp_dim, _] = self.axes(prefix, "encoder.layer.0.intermediate.dense.weight")?;
        Ok(json!({
            "vocab_size": vocab,
            "max_position_embeddings": positions,
            "hidden_size": width,
            "num_hidden_layers":
                self.count(prefix, "encoder.layer.", ".attention.self.query.weight"),
            "num_attention_heads": heads(width),
            "intermediate_size": mlp_dim,
        }))
    }

    fn blip(&self, text: &str) -> Result<Value> {
        let embed_dim = if self.0.has("vision_proj.weight") {
            self.0.axes::<2>("vision_proj.weight")?[0]
        } else {
            256
        };
        Ok(json!({
            "vision_config": self.tower("vision_model.")?,
            "text_config": self.bert(text)?,
            "image_text_hidden_size": embed_dim,
        }))
    }

    fn blip2(&self, is_instruct: bool) -> Result<Value> {
        let [queries, width] = self.0.axes("query_tokens")?;
        let prefix = "qformer.";
        let [mlp_dim, _] = self.axes(prefix, "encoder.layer.0.intermediate_query.dense.weight")?;
        let depth = self.count(prefix, "encoder.layer.", ".attention.attention.query.weight");
        let reads = |i: &usize| {
            let name = format!("encoder.layer.{i}.crossattention.attention.key.weight");
            self.has(prefix, &name)
        };
        let mut qformer = json!({
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads(width),
            "intermediate_size": mlp_dim,
            "cross_attention_frequency": (1..depth).find(reads).unwrap_or(depth.max(1)),
        });
        let texts = if is_instruct { "qformer." } else { "" };
        if self.has(texts, WORDS) {
            let [vocab, _] = self.axes(texts, WORDS)?;
            let [positions, _] = self.axes(texts, "embeddings.position_embeddings.weight")?;
            qformer["vocab_size"] = vocab.into();
            qformer["max_position_embeddings"] = positions.into();
        }
        let mut config = json!({
            "num_query_tokens": queries,
            "vision_config": self.tower("vision_model.")?,
            "qformer_config": qformer,
        });
        if self.0.has("vision_projection.weight") {
            let [embed_dim, _] = self.0.axes("vision_projection.weight")?;
            config["image_text_hidden_size"] = embed_dim.into();
        }
        if self.0.has("language_projection.weight") {
            let l = "language_model.";
            config["text_config"] = if self.has(l, "shared.weight") {
                self.t5(l)?
            } else if self.has(l, "model.decoder.embed_tokens.weight") {
                self.opt("language_model.model.decoder.")?
            } else {
                let mut llama = self.llama("language_model.model.", l)?;
                llama["model_type"] = "llama".into();
                llama
            };
        }
        Ok(config)
    }

    fn clip(&self) -> Result<Value> {
        let prefix = "text_model.";
        let [embed_dim, _] = self.0.axes("visual_projection.weight")?;
        let [vocab, width] = self.axes(prefix, "embeddings.token_embedding.weight")?;
        let [positions, _] = self.axes(prefix, "embeddings.position_embedding.weight")?;
        let [mlp_dim, _] = self.axes(prefix, "encoder.layers.0.mlp.fc1.weight")?;
        Ok(json!({
            "projection_dim": embed_dim,
            "vision_config": self.tower("vision_model.")?,
            "text_config": {
                "vocab_size": vocab,
                "max_position_embeddings": positions,
                "hidden_size": width,
                "num_hidden_layers": self.count(prefix, "encoder.layers.", ".layer_norm1.weight"),
                "num_attention_heads": heads(width),
                "intermediate_size": mlp_dim,
            },
        }))
    }

    /// A ViT or a DINOv2 of transformers.
    fn vit(&self, prefix: &str) -> Result<Value> {
        let patch = "embeddings.patch_embeddings.projection.weight";
        let [width, channels, patch, _] = self.axes(prefix, patch)?;
        let [tokens, _] = self.axes(prefix, "embeddings.position_embeddings")?;
        let layer = "encoder.layer.0.";
        let dense = format!("{layer}intermediate.dense.weight");
        let mlp_dim = if self.has(prefix, &dense) {
            self.axes::<2>(prefix, &dense)?[0]
        } else {
            self.axes::<2>(prefix, &format!("{layer}mlp.fc1.weight"))?[0]
        };
        let mut config = json!({
            "architectures": ["ViTModel"],
            "hidden_size": width,
            "num_channels": channels,
            "patch_size": patch,
            "image_size": Sizes::image_size(tokens, patch).0,
            "num_hidden_layers":
                self.count(prefix, "encoder.layer.", ".attention.attention.query.weight"),
            "num_attention_heads": heads(width),
            "intermediate_size": mlp_dim,
            "mlp_ratio": (mlp_dim / width.max(1)).max(1),
            "qkv_bias": self.has(prefix, &format!("{layer}attention.attention.query.bias")),
        });
        if self.0.has("classifier.weight") {
            let [classes, _] = self.0.axes("classifier.weight")?;
            config["architectures"] = json!(["ViTForImageClassification"]);
            config["num_labels"] = classes.into();
        } else if self.0.has("decoder.0.weight") {
            config["architectures"] = json!(["ViTForMaskedImageModeling"]);
        }
        Ok(config)
    }

    fn timm(&self) -> Result<Value> {
        let [width, channels, patch, _] = self.0.axes("patch_embed.proj.weight")?;
        let [tokens, _] = self.0.axes("pos_embed")?;
        let [mlp_dim, _] = self.0.axes("blocks.0.mlp.fc1.weight")?;
        let has_class = self.0.has("cls_token");
        let classes =
            if self.0.has("head.weight") { self.0.axes::<2>("head.weight")?[0] } else { 0 };
        let mut args = json!({
            "embed_dim": width,
            "in_chans": channels,
            "patch_size": patch,
            "img_size": Sizes::image_size(tokens + usize::from(!has_class), patch).0,
            "depth": self.0.count("blocks.", ".norm1.weight"),
            "num_heads": heads(width),
            "mlp_ratio": mlp_dim as f64 / width.max(1) as f64,
            "qkv_bias": self.0.has("blocks.0.attn.qkv.bias"),
            "class_token": has_class,
            "global_pool": if self.0.has("fc_norm.weight") { "avg" } else { "token" },
        });
        if self.0.has("blocks.0.ls1.gamma") {
            args["init_values"] = 1e-5.into();
        }
        Ok(json!({ "num_classes": classes, "model_args": args }))
    }
}

/// Width and heads of EVA-CLIP's ViT-g, whose heads are not of the usual width.
const EVA_WIDTH: usize = 1408;
const EVA_HEADS: usize = 16;
