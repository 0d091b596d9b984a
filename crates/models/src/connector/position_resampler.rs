//! The position-aware adapter of Qwen-VL: one cross-attention of learned queries to image tokens, with the
//! places of both in queries and keys.
//!
//! Bai et al. 2023, "Qwen-VL", arXiv:2308.12966, §2.1 and Figure 3. There is no sum with the queries and
//! no perceptron.

use crate::vision::position::PositionRule;
use crate::{Error, Result};
use ocelli_nn::layers::{Attention, LayerNorm, Linear};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, copy};
use ocelli_tensor::{AttentionMask, Tensor};

/// Sizes of the adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionResamplerConfig {
    /// Learned queries; the square of a whole number, as they stand for places of a grid.
    pub queries: usize,
    /// Width of a query, and of the result.
    pub width: usize,
    /// Heads of the attention.
    pub heads: usize,
    /// Width of an image token; if it is the width of a query, tokens are not projected first.
    pub memory_width: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
}

/// The adapter.
#[derive(Debug)]
pub struct PositionResampler {
    config: PositionResamplerConfig,
    queries: Parameter,
    position: Parameter,
    projection: Option<Linear>,
    norm_query: LayerNorm,
    norm_memory: LayerNorm,
    attn: Attention,
}

impl PositionResampler {
    /// An adapter whose parameters come from `b`.
    pub fn new(config: &PositionResamplerConfig, b: &Builder) -> Self {
        let c = config;
        let (shape, init) = ([c.queries, c.width], Init::TruncatedNormal(0.02));
        let project = || Linear::new(&b.at("projection"), c.memory_width, c.width, false, init);
        Self {
            queries: b.parameter("queries", &shape, init),
            position: b.fixed("position", &shape, Init::SinCosGrid),
            projection: (c.memory_width != c.width).then(project),
            norm_query: LayerNorm::new(&b.at("norm_query"), c.width, c.norm_eps),
            norm_memory: LayerNorm::new(&b.at("norm_memory"), c.width, c.norm_eps),
            attn: Attention::to_memory(&b.at("attn"), c.width, c.width, c.heads, init),
            config: *c,
        }
    }

    /// The sizes.
    pub fn config(&self) -> &PositionResamplerConfig {
        &self.config
    }

    /// The places of the queries, `[queries, width]`.
    pub fn query_positions(&self) -> Tensor {
        self.position.tensor()
    }

    /// The places of `tokens` image tokens of a square picture, `[tokens, width]`.
    ///
    /// # Errors
    /// If `tokens` is no square.
    pub fn token_positions(&self, tokens: usize) -> Result<Tensor> {
        let [old, new] = [self.config.queries, tokens].map(usize::isqrt);
        if new * new != tokens {
            let (what, needs) = ("reading a picture", "as many rows of patches as columns");
            return Err(Error::Unsuitable { what, needs, is: format!("one of {tokens} patches") });
        }
        let table = self.position.tensor();
        Ok(PositionRule::Transformers.resample(&table, 0, (old, old), (new, new))?)
    }

    /// What queries read of image tokens `[batch, tokens, memory_width]`, `[batch, queries, width]`.
    ///
    /// # Errors
    /// If widths differ or the tokens are those of no square picture.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let values = match &self.projection {
            Some(projection) => projection.forward(tokens)?,
            None => tokens.clone(),
        };
        let values = self.norm_memory.forward(&values)?; // [batch, tokens, width]
        let keys = values.add_table(&self.token_positions(values.shape()[1])?)?;
        let queries = self.norm_query.forward(&self.queries.tensor())?;
        let queries = queries.add(&self.position.tensor())?; // [queries, width]
        let shape = [values.shape()[0], self.config.queries, self.config.width];
        let queries = Tensor::zeros(&shape).add_table(&queries)?;
        Ok(self.attn.forward_apart(&queries, &keys, &values, &AttentionMask::default())?)
    }
}

/// The original files; `~` is what stands before the adapter.
const ORIGINAL: &[Name] = &[
    copy("queries", "~query"),
    copy("position", "~pos_embed"),
    copy("projection.*", "~kv_proj.*"),
    copy("norm_query.*", "~ln_q.*"),
    copy("norm_memory.*", "~ln_kv.*"),
    copy("attn.q.weight", "~attn.in_proj_weight").part(0, 3),
    copy("attn.k.weight", "~attn.in_proj_weight").part(1, 3),
    copy("attn.v.weight", "~attn.in_proj_weight").part(2, 3),
    copy("attn.q.bias", "~attn.in_proj_bias").part(0, 3),
    copy("attn.k.bias", "~attn.in_proj_bias").part(1, 3),
    copy("attn.v.bias", "~attn.in_proj_bias").part(2, 3),
    copy("attn.out.*", "~attn.out_proj.*"),
];

/// The name map of the original files; `prefix` stands before the names of the adapter.
pub fn names(prefix: &str) -> Names {
    Names::family(ORIGINAL, &[]).with_prefix(prefix)
}
