//! BLIP: one model that reads, matches and writes about pictures.
//!
//! Li et al. 2022, "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language
//! Understanding and Generation", arXiv:2201.12086, §3 and Figure 2. A ViT gives image tokens; text
//! models that may look at them ([`Med`]) do the rest:
//!
//! ```text
//! matching      picture ~ text encoder (contrast), grounded encoder -> match or not
//! captioning    picture -> grounded decoder
//! questions     picture, question -> grounded encoder -> grounded decoder (Figure 5)
//! ```
//!
//! The losses of pre-training are in [`super::blip_pretraining`].

use super::blip_pretraining::{Momentum, momentum_names};
use super::blip2_pretraining::to_write;
use super::matcher::{Matcher, Scores};
use super::writer::{Request, Writer};
use crate::generate::{Answer, Decoder, Flow, Prompt, Settings, generate};
use crate::language::bert::{Memory, Texts};
use crate::language::med::{self, Med, MedConfig};
use crate::vision::vit::{self, Vit, VitConfig};
use crate::{Error, Result};
use ocelli_data::text::Tokenizer;
use ocelli_nn::layers::Linear;
use ocelli_nn::{Builder, Init, Name, Names, copy};
use ocelli_tensor::Tensor;

/// Sizes of a BLIP, and the parts that it has.
#[derive(Clone, Debug, PartialEq)]
pub struct BlipConfig {
    /// The vision tower.
    pub vision: VitConfig,
    /// What reads texts and questions.
    pub encoder: Option<MedConfig>,
    /// What writes captions and answers.
    pub decoder: Option<MedConfig>,
    /// Whether the decoder has all but self-attention in common with the encoder (§3.2).
    pub is_shared: bool,
    /// Width of the joint space, if it compares pictures and texts.
    pub embed_dim: Option<usize>,
    /// Pictures and texts that contrast remembers while it trains.
    pub queue: Option<usize>,
    /// Share of the weight that the loss of writing spreads over all words.
    pub label_smoothing: f32,
    /// How slowly the copies of contrast follow: the share of them that stays in each step.
    pub momentum: f32,
    /// Share of the copies' opinion in the targets of contrast.
    pub alpha: f32,
    /// Ids of tokens.
    pub tokens: BlipTokens,
}

/// Ids of tokens with a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlipTokens {
    /// The first token of a text that is written, `[DEC]`.
    pub decode: u32,
    /// The first token of a text that is read with its picture, `[ENC]`.
    pub encode: u32,
    /// The last token of every text, `[SEP]`.
    pub separator: u32,
    /// Padding.
    pub pad: u32,
}

impl Default for BlipTokens {
    /// Those of the published vocabulary.
    fn default() -> Self {
        Self { decode: 30_522, encode: 30_523, separator: 102, pad: 0 }
    }
}

/// What compares pictures and texts (§3.2).
#[derive(Debug)]
pub(super) struct Matching {
    pub(super) image: Linear,
    pub(super) text: Linear,
    head: Linear,
}

/// A projection to the joint space.
pub(super) fn projection(b: &Builder, name: &str, width: usize, embed_dim: usize) -> Linear {
    Linear::new(&b.at(name), width, embed_dim, true, Init::Uniform((width as f32).powf(-0.5)))
}

/// BLIP.
#[derive(Debug)]
pub struct Blip {
    config: BlipConfig,
    pub(super) vision: Vit,
    encoder: Option<Med>,
    decoder: Option<Med>,
    pub(super) matching: Option<Matching>,
    pub(super) momentum: Option<Momentum>,
}

/// Pictures and texts in the joint space.
#[derive(Clone, Debug)]
pub struct Contrast {
    /// The texts alone, `[texts, tokens, width]`.
    pub tokens: Tensor,
    /// `[images, embed_dim]`, each row of length 1.
    pub images: Tensor,
    /// `[texts, embed_dim]`, each row of length 1.
    pub texts: Tensor,
}

impl Contrast {
    /// The cosine of each picture and each text, `[images, texts]`.
    ///
    /// # Errors
    /// If widths differ.
    pub fn cosines(&self) -> Result<Tensor> {
        Ok(self.images.matmul(&self.texts.transpose()?)?)
    }
}

impl Blip {
    /// A model whose parameters come from `b`.
    pub fn new(config: &BlipConfig, b: &Builder) -> Self {
        let c = config;
        let encoder = c.encoder.as_ref().map(|e| Med::new(e, &b.at("encoder")));
        let to_decode = b.at("decoder");
        let decoder = match (&encoder, &c.decoder) {
            (Some(encoder), Some(_)) if c.is_shared => Some(encoder.decoder(&to_decode)),
            (_, own) => own.as_ref().map(|d| Med::new(d, &to_decode)),
        };
        let matching = c.encoder.as_ref().zip(c.embed_dim).map(|(text, embed_dim)| {
            let b = b.at("matching");
            Matching {
                image: projection(&b, "image", c.vision.width, embed_dim),
                text: projection(&b, "text", text.width, embed_dim),
                head: projection(&b, "head", text.width, 2),
            }
        });
        Self {
            vision: Vit::new(&c.vision, &b.at("vision")),
            encoder,
            decoder,
            matching,
            momentum: c.queue.and_then(|queue| Momentum::new(c, queue, b)),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &BlipConfig {
        &self.config
    }

    /// The vision tower.
    pub fn vision(&self) -> &Vit {
        &self.vision
    }

    /// What reads texts.
    ///
    /// # Errors
    /// If the model only writes.
    pub fn encoder(&self) -> Result<&Med> {
        self.encoder.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "reading text",
            needs: "a BLIP for questions or for matching",
            is: "a BLIP for captions".to_owned(),
        })
    }

    /// What writes texts.
    ///
    /// # Errors
    /// If the model only reads.
    pub fn decoder(&self) -> Result<&Med> {
        self.decoder.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "writing text",
            needs: "a BLIP for captions or for questions",
            is: "a BLIP for matching".to_owned(),
        })
    }

    pub(super) fn matching(&self) -> Result<&Matching> {
        self.matching.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "comparing pictures and texts",
            needs: "a BLIP for matching",
            is: "a BLIP that writes".to_owned(),
        })
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to all tokens of the tower, class token first.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn image_tokens(&self, pixels: &Tensor) -> Result<Memory> {
        Ok(self.vision.features(pixels)?.into())
    }

    /// Pictures and texts, each alone, in the joint space (§3.2, image-text contrast). Texts begin
    /// with the class token.
    ///
    /// # Errors
    /// If the model does not match, or the inputs do not suit.
    pub fn compare(&self, memory: &Memory, texts: &Texts) -> Result<Contrast> {
        let images = self.embed_images(memory)?;
        let tokens = self.encoder()?.features(texts, None)?;
        let texts = self.embed_texts(&tokens)?;
        Ok(Contrast { tokens, images, texts })
    }

    /// Pictures in the joint space, `[batch, embed_dim]`, each row of length 1.
    ///
    /// # Errors
    /// If the model does not match.
    pub fn embed_images(&self, memory: &Memory) -> Result<Tensor> {
        Ok(self.matching()?.image.forward(&class_of(&memory.tokens)?)?.l2_normalise()?)
    }

    /// Texts in the joint space, `[batch, embed_dim]`, each row of length 1, from what the encoder
    /// reads in them alone.
    ///
    /// # Errors
    /// If the model does not match.
    pub fn embed_texts(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(self.matching()?.text.forward(&class_of(tokens)?)?.l2_normalise()?)
    }

    /// Logits of no match and match of each picture and its text (§3.2, image-text matching),
    /// `[batch, 2]`, from what the encoder reads in text and picture together. In training texts begin
    /// with `[ENC]`.
    ///
    /// # Errors
    /// If the model does not match.
    pub fn match_logits(&self, pairs: &Tensor) -> Result<Tensor> {
        Ok(self.matching()?.head.forward(&class_of(pairs)?)?)
    }

    /// The mean cross-entropy of captions; as for [`Med::loss`]. Texts begin with `[DEC]`.
    ///
    /// # Errors
    /// If the model does not write, or the inputs do not suit.
    pub fn loss(
        &self,
        memory: &Memory,
        texts: &Texts,
        labels: &[u32],
        smoothing: f32,
    ) -> Result<Tensor> {
        let decoder = self.decoder()?;
        let logits = decoder.words(&decoder.features(texts, Some(memory))?)?;
        decoder.loss(&logits, labels, smoothing)
    }

    /// What a question about a picture comes to: what its answer looks at. Questions begin with
    /// `[ENC]`. Padding among them is looked at too, as in transformers, so questions of one length
    /// belong together.
    ///
    /// # Errors
    /// If the model does not read, or the inputs do not suit.
    pub fn question(&self, memory: &Memory, questions: &Texts) -> Result<Memory> {
        Ok(self.encoder()?.features(questions, Some(memory))?.into())
    }

    /// Writes a text about each memory: image tokens for a caption, a question for an answer. Texts go
    /// on from `start`, which begins with `[DEC]`.
    ///
    /// # Errors
    /// If the model does not write, or `start` leaves no room.
    pub fn continue_text(
        &self,
        memory: &Memory,
        start: &[u32],
        settings: &Settings,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> Result<Vec<Answer>> {
        let decoder = self.decoder()?;
        let prompt = Prompt::text(decoder, start)?;
        let mut cache = decoder.new_cache(&memory.tokens)?;
        generate(decoder, &vec![prompt; memory.batch()], &mut cache, settings, on_token)
    }
}

/// The first token of each row, `[batch, width]`.
pub(super) fn class_of(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.select_tokens(&vec![0; tokens.shape()[0]])?)
}

/// How the captions begin that the model learned from.
const PROMPT: &str = "a picture of";
/// Tokens of a caption, and of an answer, at most; as in the original code.
const MOST_TOKENS: [usize; 2] = [20, 10];

impl Writer for Blip {
    fn usual(&self, request: &Request) -> Settings {
        let is_question = matches!(request, Request::Answer(_));
        let most = MOST_TOKENS[usize::from(is_question)];
        Settings::greedy(most, &[self.config.tokens.separator])
    }

    fn write(
        &self,
        pixels: &Tensor,
        request: &Request,
        tokenizer: &Tokenizer,
        settings: &Settings,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> Result<Vec<Answer>> {
        let tokens = self.config.tokens;
        let (memory, start) = match request {
            Request::Caption(prompt) => {
                let mut start = vec![tokens.decode];
                start.extend(tokenizer.encode(prompt.unwrap_or(PROMPT), false));
                (self.image_tokens(pixels)?, start)
            }
            Request::Answer(question) => {
                let mut ids = vec![tokens.encode];
                ids.extend(tokenizer.encode(question, false));
                ids.push(tokens.separator);
                let limit = self.encoder()?.context_length().unwrap_or(usize::MAX);
                if ids.len() > limit {
                    let (tokens, image_tokens) = (ids.len(), 0);
                    return Err(Error::ContextOverflow { limit, tokens, image_tokens });
                }
                let memory = self.image_tokens(pixels)?;
                let questions = Texts::repeated(&ids, memory.batch());
                (self.question(&memory, &questions)?, vec![tokens.decode])
            }
        };
        self.continue_text(&memory, &start, settings, on_token)
    }
}

impl Matcher for Blip {
    /// Texts are read with the picture behind `[ENC]`, as in training; transformers keeps `[CLS]`, which
    /// gives other probabilities.
    fn scores(&self, pixels: &Tensor, texts: &Texts) -> Result<Scores> {
        let memory = self.image_tokens(pixels)?;
        let cosines = self.compare(&memory, texts)?.cosines()?;
        let (read, _) = to_write(texts, self.config.tokens.encode);
        let (images, tokens) = (memory.batch(), texts.tokens());
        let mut probabilities = vec![0.0; images * texts.batch];
        for text in 0..texts.batch {
            // One text at a time, without padding, with all pictures.
            let mask = &read.mask[text * tokens..][..tokens];
            let ids = read.ids[text * tokens..].iter().zip(mask);
            let ids: Vec<u32> = ids.filter(|(_, m)| **m != 0).map(|(id, _)| *id).collect();
            let copies = Texts::repeated(&ids, images);
            let pairs = self.encoder()?.features(&copies, Some(&memory))?;
            let logits = self.match_logits(&pairs)?;
            for (image, logits) in logits.values().chunks_exact(2).enumerate() {
                probabilities[image * texts.batch + text] =
                    1.0 / (1.0 + (logits[0] - logits[1]).exp());
            }
        }
        let probabilities = Tensor::from_slice(&probabilities, &[images, texts.batch])?;
        Ok(Scores { cosines, probabilities })
    }
}

/// transformers; `~` is `vision_model.`.
const TRANSFORMERS_VIT: &[Name] = &[
    copy("class", "~embeddings.class_embedding").leading(2),
    copy("position", "~embeddings.position_embedding").leading(1),
    copy("patch.*", "~embeddings.patch_embedding.*"),
    copy("blocks.*.norm1.*", "~encoder.layers.*.layer_norm1.*"),
    copy("blocks.*.attn.qkv.*", "~encoder.layers.*.self_attn.qkv.*"),
    copy("blocks.*.attn.out.*", "~encoder.layers.*.self_attn.projection.*"),
    copy("blocks.*.norm2.*", "~encoder.layers.*.layer_norm2.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layers.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layers.*.mlp.fc2.*"),
    copy("norm.*", "~post_layernorm.*"),
];

/// The original code; `~` is `visual_encoder.` or its momentum copy.
const ORIGINAL_VIT: &[Name] = &[
    copy("class", "~cls_token").leading(2),
    copy("position", "~pos_embed").leading(1),
    copy("patch.*", "~patch_embed.proj.*"),
    copy("blocks.*.norm1.*", "~blocks.*.norm1.*"),
    copy("blocks.*.attn.qkv.*", "~blocks.*.attn.qkv.*"),
    copy("blocks.*.attn.out.*", "~blocks.*.attn.proj.*"),
    copy("blocks.*.norm2.*", "~blocks.*.norm2.*"),
    copy("blocks.*.mlp.up.*", "~blocks.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "~blocks.*.mlp.fc2.*"),
    copy("norm.*", "~norm.*"),
];

/// Both families, beside the towers.
const MATCHING: &[Name] = &[
    copy("matching.image.*", "vision_proj.*"),
    copy("matching.text.*", "text_proj.*"),
    copy("matching.head.*", "itm_head.*"),
];

/// The name map of the original code's vision tower; `prefix` is `"visual_encoder."` or that of its
/// momentum copy.
pub(super) fn original_vit_names(prefix: &str) -> Names {
    vit::names(ORIGINAL_VIT, prefix)
}

/// Name maps of transformers files.
pub fn transformers_names(config: &BlipConfig) -> Vec<Names> {
    names(config, vit::names(TRANSFORMERS_VIT, "vision_model."))
}

/// Name maps of files of the original code; `next` is what it calls the oldest place of the queues.
pub fn original_names(config: &BlipConfig, next: &'static str) -> Vec<Names> {
    let mut names = names(config, original_vit_names("visual_encoder."));
    names.extend(momentum_names(next));
    names
}

fn names(config: &BlipConfig, tower: Names) -> Vec<Names> {
    let mut names = vec![
        tower.under("vision."),
        Names::family(MATCHING, &[]),
        med::encoder_names("text_encoder.").under("encoder."),
    ];
    names.extend(med::decoder_names(config.is_shared).map(|n| n.under("decoder.")));
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::super::blip_pretraining::{ALPHA, MOMENTUM};
    use super::*;

    #[test]
    fn published_models_have_their_parameters() {
        let blip = |size: &str, encodes: bool, decodes: bool, embed_dim| {
            let vision = VitConfig {
                image_size: (384, 384),
                head: vit::Head::None,
                ..VitConfig::variant(size).unwrap()
            };
            let text = MedConfig::base(vision.width);
            let config = BlipConfig {
                vision,
                encoder: encodes.then(|| text.clone()),
                decoder: decodes.then_some(MedConfig { is_decoder: true, ..text }),
                is_shared: false,
                embed_dim,
                queue: None,
                label_smoothing: 0.0,
                momentum: MOMENTUM,
                alpha: ALPHA,
                tokens: BlipTokens::default(),
            };
            let b = Builder::zeros();
            let _model = Blip::new(&config, &b);
            b.finish().unwrap().elements()
        };
        assert_eq!(blip("B/16", false, true, None), 223_971_644);
        assert_eq!(blip("L/16", false, true, None), 446_290_492);
        assert_eq!(blip("B/16", true, false, Some(256)), 223_744_258);
        assert_eq!(blip("B/16", true, true, None), 361_230_140);
    }
}
