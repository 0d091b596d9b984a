//! Flamingo: a tower, a Perceiver Resampler, and a language model with layers that look at pictures.
//!
//! Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", arXiv:2204.14198,
//! §3 and Figure 3; and its public counterpart, Awadalla et al. 2023, "OpenFlamingo",
//! arXiv:2308.01390. Text and pictures alternate: a place in the text says from where on a picture is
//! looked at, and only the layers between the blocks see it.

use crate::Result;
use crate::connector::gated_xattn::{self, GatedConfig, GatedCrossAttention, Sight, times};
use crate::connector::perceiver::{self, PerceiverConfig, PerceiverResampler};
use crate::generate::{Cache, Decoder, Prompt, Rows};
use crate::language::causal::{CausalModel, Interleaved, next_token_loss};
use crate::language::gpt_neox::{self, GptNeox, GptNeoxConfig};
use crate::language::llama::{self, Llama, LlamaConfig};
use crate::language::mpt::{self, Mpt, MptConfig};
use crate::language::opt::{self, Opt, OptConfig};
use crate::systems::talker::{Reading, Talker};
use crate::systems::writer::Request;
use crate::vision::clip_vit::{ClipVit, ClipVitConfig};
use crate::vision::nfnet::{self, NfNet, NfNetConfig};
use ocelli_nn::layers::LayerNorm;
use ocelli_nn::{Builder, Name, Names, copy};
use ocelli_tensor::{Activation, Tensor};
use std::sync::Arc;

/// What sees.
#[derive(Clone, Debug, PartialEq)]
pub enum TowerConfig {
    /// The patches of a CLIP; the flag says whether they pass the norm that is meant for its class
    /// token, as they do in newer versions of the library that OpenFlamingo takes it from.
    Clip(ClipVitConfig, bool),
    /// The map behind the last activation of an NFNet, or behind its last stage.
    NfNet(NfNetConfig, NfNetMap),
}

/// Which map of an NFNet is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NfNetMap {
    /// Behind the last stage, as the paper's width of 1536 has it.
    LastStage,
    /// Behind the last activation.
    Features,
}

impl TowerConfig {
    /// Values of a feature.
    pub fn width(&self) -> usize {
        match self {
            Self::Clip(c, _) => c.width,
            Self::NfNet(c, NfNetMap::LastStage) => c.width(),
            Self::NfNet(c, NfNetMap::Features) => c.features,
        }
    }
}

/// What writes.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageConfig {
    /// A LLaMA.
    Llama(LlamaConfig),
    /// An OPT.
    Opt(OptConfig),
    /// A GPT-NeoX.
    GptNeox(GptNeoxConfig),
    /// An MPT.
    Mpt(MptConfig),
    /// An MPT in the layout of its first release.
    MosaicGpt(MptConfig),
}

impl LanguageConfig {
    /// Blocks and width.
    pub fn sizes(&self) -> (usize, usize) {
        match self {
            Self::Llama(c) => (c.depth, c.width),
            Self::Opt(c) => (c.depth, c.width),
            Self::GptNeox(c) => (c.depth, c.width),
            Self::Mpt(c) | Self::MosaicGpt(c) => (c.depth, c.width),
        }
    }

    /// What stands before the number of a block in a file, behind the language model's own prefix.
    fn blocks(&self) -> &'static str {
        match self {
            Self::Llama(_) => "model.layers.",
            Self::Opt(_) => "model.decoder.layers.",
            Self::GptNeox(_) => "gpt_neox.layers.",
            Self::Mpt(_) | Self::MosaicGpt(_) => "transformer.blocks.",
        }
    }
}

/// Which blocks a layer that looks at pictures stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Before one of so many blocks.
    pub every: usize,
    /// Before the first of them, as the paper counts; else before the last, as OpenFlamingo does.
    pub is_first: bool,
}

impl Places {
    /// Whether there is one before block `block`.
    pub fn has(self, block: usize) -> bool {
        let every = self.every.max(1);
        block % every == if self.is_first { 0 } else { every - 1 }
    }
}

/// Parts of a Flamingo.
#[derive(Clone, Debug, PartialEq)]
pub struct FlamingoConfig {
    /// What sees.
    pub vision: TowerConfig,
    /// What makes a few latents of what is seen.
    pub resampler: PerceiverConfig,
    /// What looks at the latents.
    pub gated: GatedConfig,
    /// Where.
    pub places: Places,
    /// What writes.
    pub text: LanguageConfig,
    /// Stands in a text where a picture is looked at.
    pub image_token: u32,
    /// Whether words look at all pictures before them; else at the last one.
    pub looks_back: bool,
}

impl FlamingoConfig {
    /// A size of the paper (its tables of architectures), `"3b"`, `"9b"` or `"80b"`, on a language model
    /// in the form of a GPT-NeoX with the sizes of Chinchilla, whose own layers nobody published.
    pub fn variant(name: &str) -> Option<Self> {
        let (width, depth, heads, every) = match name {
            "3b" => (2048, 24, 16, 1),
            "9b" => (4096, 40, 32, 4),
            "80b" => (8192, 80, 64, 7),
            _ => return None,
        };
        let tower = NfNetConfig { classes: 0, image_size: 320, ..NfNetConfig::variant("F6")? };
        let memory_width = tower.width();
        let activation = Activation::SquaredRelu;
        Some(Self {
            vision: TowerConfig::NfNet(tower, NfNetMap::LastStage),
            resampler: PerceiverConfig {
                width: memory_width,
                depth: 6,
                heads: 16,
                head_dim: memory_width / 16,
                latents: 64,
                mlp_dim: 4 * memory_width,
                activation,
                frames: 8,
                media: 0,
            },
            gated: GatedConfig {
                width,
                memory_width,
                heads,
                head_dim: width / heads,
                mlp_dim: 4 * width,
                activation,
            },
            places: Places { every, is_first: true },
            text: LanguageConfig::GptNeox(GptNeoxConfig {
                vocab: 32_000,
                width,
                depth,
                heads,
                rotary_dim: width / heads,
                mlp_dim: 4 * width,
                ..GptNeoxConfig::variant("20b")?
            }),
            image_token: 0,
            looks_back: false,
        })
    }
}

#[derive(Debug)]
enum Tower {
    Clip(Box<ClipVit>, Option<LayerNorm>),
    NfNet(Box<NfNet>, NfNetMap),
}

impl Tower {
    fn new(config: &TowerConfig, b: &Builder) -> Self {
        match config {
            TowerConfig::Clip(c, is_normed) => {
                let norm = || LayerNorm::new(&b.at("norm_post"), c.width, c.norm_eps);
                Self::Clip(Box::new(ClipVit::trunk(c, b)), is_normed.then(norm))
            }
            TowerConfig::NfNet(c, map) => Self::NfNet(Box::new(NfNet::new(c, b)), *map),
        }
    }

    /// Features of normalised `pixels` `[pictures, 3, img_h, img_w]`, `[pictures, positions, width]`.
    fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        match self {
            Self::Clip(vit, norm) => {
                let x = vit.features(pixels)?; // [pictures, 1 + patches, width]
                let x = match norm {
                    Some(norm) => norm.forward(&x)?,
                    None => x,
                };
                Ok(x.narrow(1, 1, x.shape()[1] - 1)?)
            }
            Self::NfNet(net, map) => {
                let map = match map {
                    NfNetMap::LastStage => net.last_stage(pixels)?,
                    NfNetMap::Features => net.features(pixels)?,
                };
                let &[pictures, width, grid_h, grid_w] = &map.shape()[..] else { return Ok(map) };
                Ok(map.reshape(&[pictures, width, grid_h * grid_w])?.permute(&[0, 2, 1])?)
            }
        }
    }
}

#[derive(Debug)]
enum Language {
    Llama(Box<Llama>),
    Opt(Box<Opt>),
    GptNeox(Box<GptNeox>),
    Mpt(Box<Mpt>),
}

impl Language {
    fn new(config: &LanguageConfig, b: &Builder) -> Self {
        match config {
            LanguageConfig::Llama(c) => Self::Llama(Box::new(Llama::new(c, b))),
            LanguageConfig::Opt(c) => Self::Opt(Box::new(Opt::new(c, b))),
            LanguageConfig::GptNeox(c) => Self::GptNeox(Box::new(GptNeox::new(c, b))),
            LanguageConfig::Mpt(c) | LanguageConfig::MosaicGpt(c) => {
                Self::Mpt(Box::new(Mpt::new(c, b)))
            }
        }
    }

    fn model(&self) -> &dyn Interleaved {
        match self {
            Self::Llama(model) => &**model,
            Self::Opt(model) => &**model,
            Self::GptNeox(model) => &**model,
            Self::Mpt(model) => &**model,
        }
    }
}

/// Texts of one length with their pictures.
#[derive(Clone, Debug)]
pub struct Documents {
    /// `[batch, tokens]`, with [`FlamingoConfig::image_token`] in front of what belongs to a picture.
    pub ids: Vec<u32>,
    /// `[batch, tokens]`, 0 for padding.
    pub mask: Arc<[u8]>,
    /// What the resampler made of the pictures, `[batch, media, latents, memory_width]`.
    pub media: Tensor,
}

/// Flamingo.
#[derive(Debug)]
pub struct Flamingo {
    config: FlamingoConfig,
    vision: Tower,
    resampler: PerceiverResampler,
    language: Language,
    /// One before each block that has one.
    gated: Vec<Option<GatedCrossAttention>>,
}

impl Flamingo {
    /// A model whose parameters come from `b`.
    pub fn new(config: &FlamingoConfig, b: &Builder) -> Self {
        let c = config;
        let layer = |i: usize| GatedCrossAttention::new(c.gated, &b.at("gated").at(i));
        Self {
            vision: Tower::new(&c.vision, &b.at("vision")),
            resampler: PerceiverResampler::new(&c.resampler, &b.at("resampler")),
            language: Language::new(&c.text, &b.at("language")),
            gated: (0..c.text.sizes().0).map(|i| c.places.has(i).then(|| layer(i))).collect(),
            config: c.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &FlamingoConfig {
        &self.config
    }

    /// The resampler.
    pub fn resampler(&self) -> &PerceiverResampler {
        &self.resampler
    }

    /// What the tower sees of normalised `pixels` `[batch, media, frames, 3, img_h, img_w]`,
    /// `[batch, media, frames, positions, width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let &[batch, media, frames, channels, img_h, img_w] = &pixels.shape()[..] else {
            let expected = "pixels [batch, media, frames, 3, img_h, img_w]".to_owned();
            let (op, got) = ("flamingo", pixels.shape().clone());
            return Err(ocelli_tensor::Error::Shape { op, expected, got }.into());
        };
        let each = pixels.reshape(&[batch * media * frames, channels, img_h, img_w])?;
        let seen = self.vision.features(&each)?; // [batch media frames, positions, width]
        let [positions, width] = [seen.shape()[1], seen.shape()[2]];
        Ok(seen.reshape(&[batch, media, frames, positions, width])?)
    }

    /// What is looked at of normalised `pixels` `[batch, media, frames, 3, img_h, img_w]`,
    /// `[batch, media, latents, memory_width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn media(&self, pixels: &Tensor) -> Result<Tensor> {
        self.resampler.forward(&self.features(pixels)?)
    }

    /// Logits of the token behind each one, `[batch, tokens, vocab]`.
    ///
    /// # Errors
    /// If shapes do not fit, or the texts are longer than the context.
    pub fn logits(&self, documents: &Documents) -> Result<Tensor> {
        let d = documents;
        let &[batch, media, latents, width] = &d.media.shape()[..] else {
            let expected = "media [batch, media, latents, width]".to_owned();
            let (op, got) = ("flamingo", d.media.shape().clone());
            return Err(ocelli_tensor::Error::Shape { op, expected, got }.into());
        };
        let (language, tokens) = (self.language.model(), d.ids.len() / batch.max(1));
        let place = |id: &u32| *id == self.config.image_token;
        let rows = d.ids.chunks(tokens.max(1));
        let when: Vec<u32> = rows.flat_map(|row| times(row.iter().map(place))).collect();
        let sight = Sight::new(&when, batch, media, latents, self.config.looks_back)?;
        let keys = d.media.reshape(&[batch, media * latents, width])?;
        let words = language.embed(&d.ids)?.reshape(&[batch, tokens, language.width()])?;
        let look = |block: usize, x: Tensor| match &self.gated[block] {
            Some(layer) => layer.forward(&x, &keys, &sight),
            None => Ok(x),
        };
        language.logits(&language.features_between(&words, Some(&d.mask), &look)?)
    }

    /// The mean cross-entropy of `labels` `[batch, tokens]`;
    /// [`ocelli_tensor::Targets::IGNORED`] takes no part.
    ///
    /// # Errors
    /// As for [`Flamingo::logits`].
    pub fn loss(&self, documents: &Documents, labels: &[u32]) -> Result<Tensor> {
        next_token_loss(&self.logits(documents)?, labels)
    }

    /// The keys and values that the layers keep of each row's latents `[media latents, memory_width]`.
    fn remember(&self, rows: &[Tensor], cache: &mut Cache) -> Result<()> {
        let joined = Rows::join(rows)?;
        for (layer, block) in self.gated.iter().zip(cache.blocks_mut()) {
            if let Some(layer) = layer {
                block.memory = Some(layer.remember(&joined.embeddings, &joined.lens)?);
            }
        }
        Ok(())
    }

    /// Latents of nothing: texts without pictures have these, and no word looks at them.
    fn nothing(&self) -> Tensor {
        Tensor::zeros(&[self.config.resampler.latents, self.config.gated.memory_width])
    }
}

impl Decoder for Flamingo {
    fn context_length(&self) -> Option<usize> {
        self.language.model().context_length()
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.language.model().embed(ids)
    }

    fn show(&self, prompts: &[Prompt], cache: &mut Cache) -> Result<()> {
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let mut latents = Vec::new();
            for (i, (_, seen)) in prompt.shown.iter().enumerate() {
                let latent = self.resampler.medium(seen, i)?; // [latents, memory_width]
                latents.push(latent);
            }
            places.push(prompt.shown.iter().map(|(place, _)| *place).collect());
            rows.push(if latents.is_empty() {
                self.nothing()
            } else {
                Tensor::cat(&latents.iter().collect::<Vec<_>>(), 0)?
            });
        }
        self.remember(&rows, cache)?;
        cache.set_places(places);
        Ok(())
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        let (batch, tokens) = (rows.lens.len(), rows.embeddings.shape()[1]);
        let mut when = Vec::with_capacity(batch * tokens);
        let mut media = 1;
        for (row, past) in cache.lens().into_iter().enumerate() {
            let places = cache.places(row);
            media = media.max(places.len());
            let time = |at: usize| places.iter().filter(|place| **place <= at).count() as u32;
            when.extend((past..past + tokens).map(time));
        }
        let latents = self.config.resampler.latents;
        let sight = Sight::new(&when, batch, media, latents, self.config.looks_back)?;
        let look = |block: usize, x: Tensor, kept: &crate::generate::BlockCache| match (
            &self.gated[block],
            &kept.memory,
        ) {
            (Some(layer), Some(memory)) => layer.step(&x, memory, &rows.lens, &sight),
            _ => Ok(x),
        };
        self.language.model().advance_between(rows, cache, &look)
    }
}

impl CausalModel for Flamingo {
    /// Of texts without pictures.
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        let [batch, tokens] = [0, 1].map(|axis| embeddings.shape().get(axis).copied().unwrap_or(1));
        let sight = Sight::none(batch, tokens)?;
        let nothing = self.nothing();
        let rows: Vec<&Tensor> = vec![&nothing; batch];
        let latents = [batch, nothing.shape()[0], nothing.shape()[1]];
        let keys = Tensor::cat(&rows, 0)?.reshape(&latents)?;
        let look = |block: usize, x: Tensor| match &self.gated[block] {
            Some(layer) => layer.forward(&x, &keys, &sight),
            None => Ok(x),
        };
        self.language.model().features_between(embeddings, mask, &look)
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.language.model().logits(features)
    }

    fn new_cache(&self, batch: usize) -> Cache {
        self.language.model().new_cache(batch)
    }

    fn place_token(&self) -> Option<u32> {
        Some(self.config.image_token)
    }
}

impl Talker for Flamingo {
    fn language(&self) -> &dyn CausalModel {
        self
    }

    /// Features of each video, `[frames, positions, width]`: a picture is a video of one frame.
    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, frames, channels, img_h, img_w) = match pixels.shape()[..] {
            [batch, channels, img_h, img_w] => (batch, 1, channels, img_h, img_w),
            [batch, frames, channels, img_h, img_w] => (batch, frames, channels, img_h, img_w),
            _ => {
                let expected = "pixels [batch, 3, img_h, img_w] or [batch, frames, ..]".to_owned();
                let (op, got) = ("flamingo", pixels.shape().clone());
                return Err(ocelli_tensor::Error::Shape { op, expected, got }.into());
            }
        };
        let pixels = pixels.reshape(&[batch, 1, frames, channels, img_h, img_w])?;
        let seen = self.features(&pixels)?; // [batch, 1, frames, positions, width]
        let [positions, width] = [seen.shape()[3], seen.shape()[4]];
        let one = |i| Ok(seen.narrow(0, i, 1)?.reshape(&[frames, positions, width])?);
        (0..batch).map(one).collect()
    }

    fn template(&self) -> &'static str {
        "flamingo"
    }

    fn reading(&self) -> Reading {
        Reading { goes_on: true, around: None }
    }

    fn instruction(&self, request: &Request) -> String {
        match request {
            Request::Caption(words) => format!("Output:{}", words.unwrap_or_default()),
            Request::Answer(question) => format!("Question:{question} Short answer:"),
        }
    }
}

/// The CLIP of open_clip; `~` is what stands in front.
const CLIP: &[Name] = &[
    copy("class", "~class_embedding"),
    copy("patch.weight", "~conv1.weight"),
    copy("position", "~positional_embedding"),
    copy("norm_pre.*", "~ln_pre.*"),
    copy("norm_post.*", "~ln_post.*"),
    copy("blocks.*.norm1.*", "~transformer.resblocks.*.ln_1.*"),
    copy("blocks.*.attn.qkv.weight", "~transformer.resblocks.*.attn.in_proj_weight"),
    copy("blocks.*.attn.qkv.bias", "~transformer.resblocks.*.attn.in_proj_bias"),
    copy("blocks.*.attn.out.*", "~transformer.resblocks.*.attn.out_proj.*"),
    copy("blocks.*.norm2.*", "~transformer.resblocks.*.ln_2.*"),
    copy("blocks.*.mlp.up.*", "~transformer.resblocks.*.mlp.c_fc.*"),
    copy("blocks.*.mlp.down.*", "~transformer.resblocks.*.mlp.c_proj.*"),
];

/// What stands before the tower, the resampler and the language model in a file.
pub const PREFIXES: [&str; 3] = ["vision_encoder.", "perceiver.", "lang_encoder."];
/// What stands between the number of a block and the block itself.
pub const BLOCK: &str = "decoder_layer";
/// And what stands there of the layer that looks at pictures.
pub const LAYER: &str = "gated_cross_attn_layer";

/// The name in a file of a part of the layer before block `block`.
pub fn layer_name(text: &LanguageConfig, block: usize, part: &str) -> String {
    format!("{}{}{block}.{LAYER}.{part}", PREFIXES[2], text.blocks())
}

/// Name maps of a file of OpenFlamingo with all parts.
pub fn names(config: &FlamingoConfig) -> Vec<Names> {
    let [vision, resampler, language] = PREFIXES;
    let mut names = match &config.vision {
        TowerConfig::Clip(_, is_normed) => {
            // The way into the joint space is not gone.
            let norm: &[&'static str] = if *is_normed { &[] } else { &["ln_post.*"] };
            let ignored = [norm, &["proj"]].concat();
            vec![Names::family(CLIP, &ignored).with_prefix(vision).under("vision.")]
        }
        TowerConfig::NfNet(c, _) => vec![nfnet::names(vision, c.classes > 0).under("vision.")],
    };
    names.push(perceiver::names(resampler, false).under("resampler."));
    for i in (0..config.text.sizes().0).filter(|i| config.places.has(*i)) {
        let layer = gated_xattn::names(&layer_name(&config.text, i, ""));
        names.push(layer.under(&format!("gated.{i}.")));
    }
    let own = match &config.text {
        LanguageConfig::Llama(c) => {
            llama::names_at(&format!("{language}model."), language, c.has_tied_head).into()
        }
        LanguageConfig::Opt(_) => {
            let head = format!("{language}lm_head.weight");
            vec![opt::names(&format!("{language}model.")).ignoring([head])]
        }
        LanguageConfig::GptNeox(c) => vec![gpt_neox::names(language, c)],
        LanguageConfig::Mpt(_) => vec![mpt::names(language)],
        LanguageConfig::MosaicGpt(_) => vec![mpt::mosaic_gpt_names(language)],
    };
    names.extend(own.into_iter().map(|names| names.wrapped_in(BLOCK).under("language.")));
    names
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn layers_stand_where_paper_and_code_have_them() {
        let places = |every, is_first| {
            let places = Places { every, is_first };
            (0..80).filter(|i| places.has(*i)).collect::<Vec<_>>()
        };
        let of_paper = places(7, true);
        assert_eq!((of_paper.len(), of_paper[1]), (12, 7));
        let of_code = places(4, false);
        assert_eq!((of_code.len(), of_code[0]), (20, 3));
        assert_eq!(places(1, true), places(1, false));
    }

    #[test]
    fn printed_sizes_have_their_parameters() {
        // In millions, of all layers that look at pictures. The paper reports 1.2, 1.6 and 10 thousand,
        // which its printed sizes give for the first alone.
        for (name, millions) in [("3b", 1158), ("9b", 1804), ("80b", 8355)] {
            let b = Builder::zeros();
            let c = FlamingoConfig::variant(name).unwrap();
            for i in (0..c.text.sizes().0).filter(|i| c.places.has(*i)) {
                GatedCrossAttention::new(c.gated, &b.at(i));
            }
            let count = b.finish().unwrap().elements();
            assert_eq!((count + 500_000) / 1_000_000, millions, "{name}");
        }
        assert!(FlamingoConfig::variant("1b").is_none());
    }
}
