//! Gated cross attention: layers between the blocks of a frozen language model that look at pictures.
//!
//! Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", arXiv:2204.14198,
//! §3.2 and Figure 4; which picture a word looks at is §3.2 "Multi-image". The gates begin at 0, so
//! that the model begins as the language model alone.

use super::perceiver::{FeedForward, NORM_EPS, linear_init};
use crate::Result;
use ocelli_nn::layers::{LayerNorm, MemoryAttention, MemoryAttentionSizes};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{Activation, AttentionMask, KeyValues, Step, Tensor};

/// Sizes of a gated cross attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedConfig {
    /// Width of the language model's tokens.
    pub width: usize,
    /// Width of the latents of a picture.
    pub memory_width: usize,
    /// Heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Hidden width of the perceptron.
    pub mlp_dim: usize,
    /// Activation of the perceptron.
    pub activation: Activation,
}

/// Score of a picture that a token does not see. Where it sees none, every latent counts the same.
const UNSEEN: f32 = -1e30;

/// Whether a token of time `time` looks at picture `medium`, counted from 1; `looks_back` says that it
/// looks at all pictures before it.
pub fn looks_at(time: u32, medium: u32, looks_back: bool) -> bool {
    if looks_back { time >= medium } else { time == medium }
}

/// Whether a picture has a part in what a token sees: one that looks back at none is left without a
/// score, so that all pictures have the same part.
pub fn sees(time: u32, medium: u32, looks_back: bool) -> bool {
    looks_at(time, medium, looks_back) || (looks_back && time == 0)
}

/// Which pictures every token of a batch looks at.
///
/// A token whose time is `t` comes behind the `t`-th place for a picture; that place has time `t`
/// already. With two latents a picture, the text `a <image> b <image> c` of times `0 1 1 2 2` sees:
///
/// ```text
/// a        0 0 0 0   nothing, and what it would look at is multiplied by 0
/// <image>  1 1 0 0
/// b        1 1 0 0
/// <image>  0 0 1 1   1 1 1 1 if tokens look at all pictures before them
/// c        0 0 1 1   1 1 1 1
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// `[batch, 1, tokens, keys]`; without any, everything is seen.
    bias: Option<Tensor>,
    /// 0 where a token sees nothing, `[batch, tokens]`; without any, all tokens see something.
    seeing: Option<Tensor>,
}

impl Sight {
    /// Of tokens with `times` `[batch, tokens]`, where each text has `media` pictures of `latents`
    /// latents. `looks_back` says that a token looks at all pictures before it, and a text's words in
    /// front of its first picture at every picture alike.
    ///
    /// # Errors
    /// If the times are not whole rows.
    pub fn new(
        times: &[u32],
        batch: usize,
        media: usize,
        latents: usize,
        looks_back: bool,
    ) -> Result<Self> {
        let tokens = times.len() / batch.max(1);
        let mut bias = Vec::with_capacity(times.len() * media * latents);
        for time in times {
            for medium in 1..=media as u32 {
                let score = if looks_at(*time, medium, looks_back) { 0.0 } else { UNSEEN };
                bias.extend(std::iter::repeat_n(score, latents));
            }
        }
        let bias = Tensor::from_slice(&bias, &[batch, 1, tokens, media * latents])?;
        let is_blind = !looks_back && times.contains(&0);
        let seeing = is_blind.then(|| {
            let seeing: Vec<f32> = times.iter().map(|t| f32::from(u8::from(*t > 0))).collect();
            Tensor::from_slice(&seeing, &[batch, tokens])
        });
        Ok(Self { bias: Some(bias), seeing: seeing.transpose()? })
    }

    /// Of tokens in texts without pictures.
    ///
    /// # Errors
    /// Never.
    pub fn none(batch: usize, tokens: usize) -> Result<Self> {
        Ok(Self { bias: None, seeing: Some(Tensor::zeros(&[batch, tokens])) })
    }
}

/// The time of each token of texts: how many places for pictures there are up to it, itself included.
pub fn times(is_place: impl IntoIterator<Item = bool>) -> Vec<u32> {
    let mut time = 0;
    let next = |is_place| {
        time += u32::from(is_place);
        time
    };
    is_place.into_iter().map(next).collect()
}

/// A gated cross attention and the gated perceptron behind it.
#[derive(Debug)]
pub struct GatedCrossAttention {
    config: GatedConfig,
    attn_gate: Parameter,
    mlp_gate: Parameter,
    norm: LayerNorm,
    attn: MemoryAttention,
    mlp: FeedForward,
}

impl GatedCrossAttention {
    /// A layer whose parameters come from `b`.
    pub fn new(config: GatedConfig, b: &Builder) -> Self {
        let c = config;
        let gate = |name| b.parameter(name, &[], Init::Constant(0.0));
        let sizes = MemoryAttentionSizes {
            width: c.width,
            memory_width: c.memory_width,
            heads: c.heads,
            head_dim: c.head_dim,
        };
        Self {
            attn_gate: gate("attn_gate"),
            mlp_gate: gate("mlp_gate"),
            norm: LayerNorm::new(&b.at("norm"), c.width, NORM_EPS),
            attn: MemoryAttention::new(&b.at("attn"), sizes, linear_init(c.width)),
            mlp: FeedForward::new(&b.at("mlp"), c.width, c.mlp_dim, c.activation),
            config,
        }
    }

    /// The sizes.
    pub fn config(&self) -> &GatedConfig {
        &self.config
    }

    /// Tokens `[batch, tokens, width]` that have looked at their pictures' latents `media`
    /// `[batch, media latents, memory_width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, media: &Tensor, sight: &Sight) -> Result<Tensor> {
        let mask = AttentionMask { bias: sight.bias.clone(), ..AttentionMask::default() };
        self.around(x, sight, |x| self.attn.forward(x, media, &mask))
    }

    /// The keys and values of `media`, kept for [`GatedCrossAttention::step`].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn remember(&self, media: &Tensor, lens: &[usize]) -> Result<KeyValues> {
        Ok(self.attn.remember(media, lens)?)
    }

    /// The same for new tokens, `lens[i]` of row `i`, that look at pictures whose keys and values were
    /// kept.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn step(
        &self,
        x: &Tensor,
        memory: &KeyValues,
        lens: &[usize],
        sight: &Sight,
    ) -> Result<Tensor> {
        let step = Step { lens, is_causal: false, bias: sight.bias.as_ref(), scale: None };
        self.around(x, sight, |x| self.attn.recall(x, memory, &step))
    }

    fn around(
        &self,
        x: &Tensor,
        sight: &Sight,
        attend: impl FnOnce(&Tensor) -> ocelli_tensor::Result<Tensor>,
    ) -> Result<Tensor> {
        let mut looked = attend(&self.norm.forward(x)?)?;
        if let Some(seeing) = &sight.seeing {
            looked = looked.scale_rows(seeing)?;
        }
        let x = gated(&looked, &self.attn_gate)?.add(x)?;
        Ok(gated(&self.mlp.forward(&x, None)?, &self.mlp_gate)?.add(&x)?)
    }
}

fn gated(x: &Tensor, gate: &Parameter) -> Result<Tensor> {
    Ok(x.scale_rows(&gate.tensor().activate(Activation::Tanh)?)?)
}

/// OpenFlamingo and flamingo-pytorch; `~` is what stands in front.
pub const OPEN_FLAMINGO: &[Name] = &[
    copy("attn_gate", "~attn_gate"),
    copy("mlp_gate", "~ff_gate"),
    copy("norm.*", "~attn.norm.*"),
    copy("attn.q.weight", "~attn.to_q.weight"),
    copy("attn.kv.weight", "~attn.to_kv.weight"),
    copy("attn.out.weight", "~attn.to_out.weight"),
    copy("mlp.norm.*", "~ff.0.*"),
    copy("mlp.up.weight", "~ff.1.weight"),
    copy("mlp.down.weight", "~ff.3.weight"),
];

/// Name map of a file; `prefix` stands in front of every name.
pub fn names(prefix: &str) -> Names {
    Names::family(OPEN_FLAMINGO, &[]).with_prefix(prefix)
}
