//! LLaVA: a CLIP tower, a projector and a LLaMA.
//!
//! Liu et al. 2023, "Visual Instruction Tuning", arXiv:2304.08485, §4.1, and "Improved Baselines with
//! Visual Instruction Tuning", arXiv:2310.03744, §3. The tower is frozen; what it sees is the output
//! of one of its last blocks, without the norm that follows.

use crate::Result;
use crate::connector::projector::Projector;
use crate::connector::splice::{IMAGE, Spliced};
use crate::generate::Rows;
use crate::language::causal::{CausalModel, next_token_loss};
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::systems::talker::{Reading, Talker, one_by_one};
use crate::systems::writer::Request;
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use ocelli_nn::{Builder, Name, Names, concat, copy};
use ocelli_tensor::{Activation, Targets, Tensor, no_grad};
use std::sync::Arc;

/// Parts of a LLaVA.
#[derive(Clone, Debug, PartialEq)]
pub struct LlavaConfig {
    /// The tower.
    pub vision: ClipVitConfig,
    /// Hidden states of the tower that the projector reads, one beside the other; 0 is before the
    /// first block.
    pub states: Vec<usize>,
    /// Whether the class token is read as well.
    pub keeps_class: bool,
    /// Layers of the projector.
    pub projector_depth: usize,
    /// Whether they have biases.
    pub projector_bias: bool,
    /// Between them.
    pub projector_activation: Activation,
    /// The language model.
    pub text: LlamaConfig,
    /// The name of the conversation template that it was tuned with.
    pub template: &'static str,
    /// How it was tuned to read texts with pictures.
    pub reading: Reading,
}

impl LlavaConfig {
    /// Tokens that a picture becomes.
    pub fn image_tokens(&self) -> usize {
        self.vision.tokens() - usize::from(!self.keeps_class)
    }
}

/// A batch as the language model reads it.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, tokens, width]`; zeros behind each text.
    pub embeddings: Tensor,
    /// `[batch, tokens]`, 0 behind each text.
    pub mask: Arc<[u8]>,
    /// `[batch, tokens]`.
    pub labels: Vec<u32>,
    /// `[batch, tokens]`, 0 behind each text.
    pub positions: Arc<[u32]>,
}

/// LLaVA.
#[derive(Debug)]
pub struct Llava {
    config: LlavaConfig,
    vision: ClipVit,
    projector: Projector,
    language: Llama,
}

impl Llava {
    /// A model whose parameters come from `b`, those of the tower from `tower`.
    pub fn new(config: &LlavaConfig, tower: &Builder, b: &Builder) -> Self {
        let c = config;
        let width = c.states.len() * c.vision.width;
        Self {
            vision: ClipVit::trunk(&c.vision, tower),
            projector: Projector::new(
                &b.at("projector"),
                width,
                c.text.width,
                c.projector_depth,
                c.projector_bias,
                c.projector_activation,
            ),
            language: Llama::new(&c.text, &b.at("language")),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    /// The projector.
    pub fn projector(&self) -> &Projector {
        &self.projector
    }

    /// What the projector reads of normalised `pixels` `[batch, 3, img_h, img_w]`:
    /// `[batch, image tokens, states width]`. Never on the tape, as the tower is frozen.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn seen(&self, pixels: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        no_grad(|| {
            let states = self.vision.states(pixels, &c.states)?;
            let seen = Tensor::cat(&states.iter().collect::<Vec<_>>(), 2)?; // [batch, 1 + patches, states width]
            let from = usize::from(!c.keeps_class);
            Ok(seen.narrow(1, from, seen.shape()[1] - from)?)
        })
    }

    /// What the language model reads of normalised `pixels`, `[batch, image tokens, width]`.
    ///
    /// # Errors
    /// As for [`Llava::seen`].
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Tensor> {
        self.projector.forward(&self.seen(pixels)?)
    }

    /// Pads texts with their pictures to a batch.
    ///
    /// # Errors
    /// If there is no text.
    pub fn batch(texts: &[Spliced]) -> Result<Batch> {
        let embeddings: Vec<Tensor> = texts.iter().map(|t| t.embeddings.clone()).collect();
        let rows = Rows::join(&embeddings)?;
        let tokens = rows.embeddings.shape()[1];
        let (mut mask, mut labels, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            let (len, padding) = (text.labels.len(), tokens - text.labels.len());
            mask.extend(std::iter::repeat_n(1, len).chain(std::iter::repeat_n(0, padding)));
            labels.extend_from_slice(&text.labels);
            labels.extend(std::iter::repeat_n(Targets::IGNORED, padding));
            positions.extend((0..len as u32).chain(std::iter::repeat_n(0, padding)));
        }
        let (mask, positions) = (mask.into(), positions.into());
        Ok(Batch { embeddings: rows.embeddings, mask, labels, positions })
    }

    /// Logits of the token behind each one, `[batch, tokens, vocab]`.
    ///
    /// # Errors
    /// If the texts are longer than the context.
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let mask = Some(&batch.mask);
        let x = self.language.features_at(&batch.embeddings, mask, &batch.positions)?;
        self.language.logits(&x)
    }

    /// The mean cross-entropy of the labels.
    ///
    /// # Errors
    /// As for [`Llava::logits`].
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        next_token_loss(&self.logits(batch)?, &batch.labels)
    }
}

impl Talker for Llava {
    fn language(&self) -> &dyn CausalModel {
        &self.language
    }

    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        one_by_one(&self.image_tokens(pixels)?)
    }

    fn template(&self) -> &'static str {
        self.config.template
    }

    fn reading(&self) -> Reading {
        self.config.reading
    }

    fn instruction(&self, request: &Request) -> String {
        match request {
            Request::Caption(words) => {
                words.unwrap_or("Describe the image in one sentence.").to_owned()
            }
            // How questions of the VQA sets were asked in training (arXiv:2310.03744, §3.2).
            Request::Answer(question) => {
                format!("{question}\nAnswer the question using a single word or phrase.")
            }
        }
    }
}

/// Ids of transformers, where every token of a picture has the id `image_token`, as ids with one
/// [`IMAGE`] for a picture of `tokens` tokens. An unfinished picture stays a place too many, which
/// [`Spliced::new`] refuses. Labels go the same way.
pub fn collapse(ids: &[u32], labels: &[u32], image_token: u32, tokens: usize) -> [Vec<u32>; 2] {
    let (mut short, mut short_labels) = (Vec::new(), Vec::new());
    let mut run = 0;
    for (i, id) in ids.iter().enumerate() {
        run = if *id == image_token { run + 1 } else { 0 };
        if run == 0 || run % tokens.max(1) == 1 % tokens.max(1) {
            short.push(if run == 0 { *id } else { IMAGE });
            short_labels.push(labels.get(i).copied().unwrap_or(Targets::IGNORED));
        }
    }
    [short, short_labels]
}

/// The tower as transformers writes it; `~` is what stands before the parts of `CLIPVisionModel`.
const TOWER: &[Name] = &[
    copy("class", "~embeddings.class_embedding"),
    copy("patch.weight", "~embeddings.patch_embedding.weight"),
    copy("position", "~embeddings.position_embedding.weight"),
    copy("norm_pre.*", "~pre_layrnorm.*"),
    copy("blocks.*.norm1.*", "~encoder.layers.*.layer_norm1.*"),
    concat("blocks.*.attn.qkv.*", "~encoder.layers.*.self_attn.{q,k,v}_proj.*"),
    copy("blocks.*.attn.out.*", "~encoder.layers.*.self_attn.out_proj.*"),
    copy("blocks.*.norm2.*", "~encoder.layers.*.layer_norm2.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layers.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layers.*.mlp.fc2.*"),
];

/// The projector of transformers.
const PROJECTOR: &[Name] = &[copy("0.*", "~linear_1.*"), copy("1.*", "~linear_2.*")];

/// The projector of the original code: layers with an activation between them, or one layer.
const ORIGINAL_PROJECTOR: &[Name] =
    &[copy("0.*", "~0.*"), copy("1.*", "~2.*"), copy("2.*", "~4.*"), copy("3.*", "~6.*")];
const ORIGINAL_LINEAR: &[Name] = &[copy("0.*", "~*")];

/// Where the parts of a LLaVA lie in a file.
#[derive(Clone, Copy, Debug)]
pub struct Prefixes<'a> {
    /// Before `embeddings` and `encoder` of the tower.
    pub tower: &'a str,
    /// Before the layers of the projector.
    pub projector: &'a str,
    /// Before `embed_tokens` and `layers`.
    pub language: &'a str,
    /// Before `lm_head`.
    pub head: &'a str,
}

/// Name maps of the tower in a file of its own or of the whole.
pub fn tower_names(prefix: &str) -> Names {
    // What follows the last block that is read, and the other half of a CLIP.
    let ignored = &[
        "post_layernorm.weight",
        "post_layernorm.bias",
        "embeddings.position_ids",
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale",
        "text_model.embeddings.*",
        "text_model.embeddings.*.weight",
        "text_model.encoder.layers.*.*.*",
        "text_model.encoder.layers.*.*.*.*",
        "text_model.final_layer_norm.*",
    ];
    Names::family(TOWER, ignored).with_prefix(prefix).under("vision.")
}

/// Name maps of a whole file.
pub fn names(p: &Prefixes, is_original: bool, projector_depth: usize, tied: bool) -> Vec<Names> {
    let projector = match (is_original, projector_depth) {
        (false, _) => PROJECTOR,
        (true, 1) => ORIGINAL_LINEAR,
        (true, _) => ORIGINAL_PROJECTOR,
    };
    let [body, head] = llama::names_at(p.language, p.head, tied);
    vec![
        tower_names(p.tower),
        Names::family(projector, &[]).with_prefix(p.projector).under("projector."),
        body.under("language."),
        head.under("language."),
    ]
}
