//! ViT: the Vision Transformer image encoder.
//!
//! Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929, §3.1. Square patches
//! become tokens; a pre-norm encoder mixes them. With it the forms that its checkpoints come in:
//! average pooling (timm), a tanh pooler and a masked-image head (transformers), layer scale
//! (DINOv2, arXiv:2304.07193).

use super::position::PositionRule;
use crate::{Pass, Result};
use ocelli_nn::layers::{Dropout, LayerNorm, Linear, Mlp, SelfAttention};
use ocelli_nn::{Builder, Init, Name, Names, Parameter, concat, copy, transpose};
use ocelli_tensor::{Activation, AttentionMask, Targets, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Sizes of a ViT (Table 1) and the head on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of the input, in pixels.
    pub image_size: (usize, usize),
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub channels: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron.
    pub mlp_dim: usize,
    /// Epsilon of the layer norms: 1e-12 in transformers, 1e-6 in timm and in the original code.
    pub norm_eps: f32,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether a class token leads the patches.
    pub has_class_token: bool,
    /// Whether residual branches are scaled per channel.
    pub has_layer_scale: bool,
    /// How the position table is brought to other sizes.
    pub position_rule: PositionRule,
    /// What the encoder's tokens are used for.
    pub head: Head,
}

/// What follows the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Features only, all tokens normalised.
    None,
    /// A tanh layer on the class token: the pre-logits of the original 21k models.
    Pooler,
    /// This many classes, from the class token.
    Classes(usize),
    /// This many classes, from the mean of the patches, normalised after the mean.
    AverageClasses(usize),
    /// Pixels of masked patches.
    MaskedImage,
}

impl VitConfig {
    /// A published size and patch, such as `"B/16"` (Table 1; Ti and S are of DeiT,
    /// arXiv:2012.12877, Table 1), at 224 pixels with 1,000 classes.
    pub fn variant(name: &str) -> Option<Self> {
        let (size, patch) = name.split_once('/')?;
        let (width, depth, heads, mlp_dim) = match size {
            "Ti" => (192, 12, 3, 768),
            "S" => (384, 12, 6, 1536),
            "B" => (768, 12, 12, 3072),
            "L" => (1024, 24, 16, 4096),
            "H" => (1280, 32, 16, 5120),
            _ => return None,
        };
        let patch_size = patch.parse().ok().filter(|p| (1..=224).contains(p))?;
        Some(Self {
            image_size: (224, 224),
            patch_size,
            channels: 3,
            width,
            depth,
            heads,
            mlp_dim,
            norm_eps: 1e-6,
            qkv_bias: true,
            has_class_token: true,
            has_layer_scale: false,
            position_rule: PositionRule::Timm,
            head: Head::Classes(1000),
        })
    }

    /// Rows and columns of patches of a picture, in patches.
    pub fn grid(&self, (img_h, img_w): (usize, usize)) -> (usize, usize) {
        (img_h / self.patch_size, img_w / self.patch_size)
    }

    /// Tokens of a picture at the configured size.
    pub fn tokens(&self) -> usize {
        let (grid_h, grid_w) = self.grid(self.image_size);
        grid_h * grid_w + usize::from(self.has_class_token)
    }

    /// Multiply-adds of one picture at the configured size, counted as two operations.
    pub fn flops(&self) -> u64 {
        let (t, w) = (self.tokens() as u64, self.width as u64);
        let linear = t * w * (4 * w + 2 * self.mlp_dim as u64);
        let attention = 2 * t * t * w;
        let (grid_h, grid_w) = self.grid(self.image_size);
        let patches =
            (grid_h * grid_w * self.channels * self.patch_size * self.patch_size) as u64 * w;
        let head = match self.head {
            Head::Classes(n) | Head::AverageClasses(n) => n as u64 * w,
            Head::Pooler => w * w,
            Head::None | Head::MaskedImage => 0,
        };
        2 * (self.depth as u64 * (linear + attention) + patches + head)
    }

    fn is_average_pooled(&self) -> bool {
        matches!(self.head, Head::AverageClasses(_))
    }
}

/// A pre-norm encoder block (Eq. 2 and 3).
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn: SelfAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    /// Gains of the two branches.
    scales: Option<(Parameter, Parameter)>,
}

impl Block {
    fn new(b: &Builder, c: &VitConfig) -> Self {
        let init = Init::XavierUniform;
        Self {
            norm1: LayerNorm::new(&b.at("norm1"), c.width, c.norm_eps),
            attn: SelfAttention::with_bias(&b.at("attn"), c.width, c.heads, c.qkv_bias, init, init),
            norm2: LayerNorm::new(&b.at("norm2"), c.width, c.norm_eps),
            mlp: Mlp::new(&b.at("mlp"), c.width, c.mlp_dim, Activation::Gelu, init, init),
            scales: c.has_layer_scale.then(|| {
                let gain = |name| b.parameter(name, &[c.width], Init::Constant(1e-5));
                (gain("scale1"), gain("scale2"))
            }),
        }
    }

    /// `[batch, tokens, width]` in and out. Dropout is where Appendix B.1 has it: behind every dense
    /// layer but those to queries, keys and values.
    fn forward(&self, x: &Tensor, drop: Dropout) -> ocelli_tensor::Result<Tensor> {
        let mask = AttentionMask::default();
        let Some((scale1, scale2)) = &self.scales else {
            let z = self.norm1.forward(x)?;
            let x = self.attn.forward_dropping(&z, &mask, Some(x), drop)?; // Eq. 2
            return self.mlp.forward_dropping(&self.norm2.forward(&x)?, Some(&x), drop); // Eq. 3
        };
        let branch = self.attn.forward_dropping(&self.norm1.forward(x)?, &mask, None, drop)?;
        let x = branch.scale_columns(&scale1.tensor())?.add(x)?;
        let branch = self.mlp.forward_dropping(&self.norm2.forward(&x)?, None, drop)?;
        branch.scale_columns(&scale2.tensor())?.add(&x)
    }
}

/// The Vision Transformer.
#[derive(Debug)]
pub struct Vit {
    config: VitConfig,
    patch: Linear,
    class: Option<Parameter>,
    position: Parameter,
    mask_token: Option<Parameter>,
    blocks: Vec<Arc<Block>>,
    norm: LayerNorm,
    head: Option<Linear>,
}

impl Vit {
    /// A model whose parameters come from `b`. New ones are drawn as in the original code
    /// (`head` zero, perceptrons and attention Xavier-uniform).
    pub fn new(config: &VitConfig, b: &Builder) -> Self {
        let c = config;
        let inputs = c.channels * c.patch_size * c.patch_size;
        let lecun = Init::TruncatedNormal((inputs as f32).powf(-0.5));
        Self {
            patch: Linear::of_patches(
                &b.at("patch"),
                [c.channels, c.width],
                c.patch_size,
                true,
                lecun,
            ),
            class: c.has_class_token.then(|| b.parameter("class", &[c.width], Init::Constant(0.0))),
            position: b.parameter("position", &[c.tokens(), c.width], Init::Normal(0.02)),
            mask_token: (c.head == Head::MaskedImage || c.has_layer_scale && b.has("mask_token"))
                .then(|| b.parameter("mask_token", &[c.width], Init::Constant(0.0))),
            blocks: (0..c.depth).map(|i| Arc::new(Block::new(&b.at("blocks").at(i), c))).collect(),
            norm: LayerNorm::new(&b.at("norm"), c.width, c.norm_eps),
            head: match c.head {
                Head::None => None,
                Head::Pooler => {
                    Some(Linear::new(&b.at("pooler"), c.width, c.width, true, Init::XavierUniform))
                }
                Head::Classes(n) | Head::AverageClasses(n) => {
                    Some(Linear::new(&b.at("head"), c.width, n, true, Init::Constant(0.0)))
                }
                Head::MaskedImage => {
                    let init = Init::TruncatedNormal(0.02);
                    Some(Linear::of_patches(&b.at("decoder"), [c.width, inputs], 1, true, init))
                }
            },
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The position table for pictures of another size, `[tokens, width]`.
    ///
    /// # Errors
    /// If a side is smaller than a patch.
    pub fn positions(&self, image_size: (usize, usize)) -> Result<Tensor> {
        let c = &self.config;
        let prefix = usize::from(c.has_class_token);
        let (old, new) = (c.grid(c.image_size), c.grid(image_size));
        Ok(c.position_rule.resample(&self.position.tensor(), prefix, old, new)?)
    }

    /// Normalised `pixels` `[batch, channels, img_h, img_w]` to tokens `[batch, tokens, width]`
    /// with positions added (Eq. 1); patches where `masked` is set are replaced by the mask token.
    ///
    /// # Errors
    /// If the channels differ or a side is smaller than a patch.
    pub fn embed(&self, pixels: &Tensor, masked: Option<&Arc<[bool]>>) -> Result<Tensor> {
        let c = &self.config;
        let x = pixels.patches(c.patch_size)?; // [batch, patches, channels patch patch]
        let mut x = self.patch.forward(&x)?; // [batch, patches, width]
        if let (Some(masked), Some(token)) = (masked, &self.mask_token) {
            x = token.tensor().replace_in(&x, masked)?;
        }
        if let Some(class) = &self.class {
            x = class.tensor().prepend_to(&x)?; // [batch, 1 + patches, width]
        }
        let axes = pixels.shape();
        Ok(x.add_table(&self.positions((axes[2], axes[3]))?)?)
    }

    /// The tokens after the embedding and after each block, `depth + 1` of them, none normalised.
    ///
    /// # Errors
    /// As for [`Vit::embed`].
    pub fn hidden_states(&self, pixels: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = vec![self.embed(pixels, None)?];
        for block in &self.blocks {
            states.push(block.forward(&states[states.len() - 1], Dropout::default())?);
        }
        Ok(states)
    }

    fn encode(&self, pixels: &Tensor, masked: Option<&Arc<[bool]>>, pass: Pass) -> Result<Tensor> {
        let drop = pass.dropout;
        let z = self.embed(pixels, masked)?; // Eq. 1
        let mut z = drop.forward(&z, self.position.name(), None)?;
        for block in &self.blocks {
            z = pass.through(block, &z, move |block, z| block.forward(z, drop))?; // Eq. 2 and 3
        }
        Ok(z)
    }

    /// All tokens after the last norm (Eq. 4), `[batch, tokens, width]`; with average pooling the
    /// norm comes later and the tokens are as the last block gives them.
    ///
    /// # Errors
    /// As for [`Vit::embed`].
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.features_by(pixels, Pass::default())
    }

    pub(crate) fn features_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let z = self.encode(pixels, None, pass)?;
        if self.config.is_average_pooled() { Ok(z) } else { Ok(self.norm.forward(&z)?) }
    }

    /// One vector per picture from [`Vit::features`]: the class token, or the normalised mean of
    /// the patches; `[batch, width]`.
    ///
    /// # Errors
    /// If the tokens have another shape.
    pub fn pool(&self, features: &Tensor) -> Result<Tensor> {
        let prefix = usize::from(self.config.has_class_token);
        if self.config.is_average_pooled() {
            return Ok(self.norm.forward(&features.mean_tokens(prefix)?)?);
        }
        if prefix == 0 {
            return Ok(features.mean_tokens(0)?);
        }
        Ok(features.select_tokens(&vec![0; features.shape()[0]])?)
    }

    /// The output of the head: logits `[batch, classes]`, or what the pooler gives, or the pooled
    /// vector of a model without a head.
    ///
    /// # Errors
    /// As for [`Vit::embed`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.forward_by(pixels, Pass::default())
    }

    /// The same in a pass of choice.
    ///
    /// # Errors
    /// As for [`Vit::embed`].
    pub fn forward_by(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let pooled = self.pool(&self.features_by(pixels, pass)?)?;
        match (&self.head, self.config.head) {
            (Some(head), Head::Pooler) => Ok(head.forward_with(&pooled, Activation::Tanh, None)?),
            (Some(head), Head::Classes(_) | Head::AverageClasses(_)) => Ok(head.forward(&pooled)?),
            _ => Ok(pooled),
        }
    }

    /// The mean cross-entropy of the logits.
    ///
    /// # Errors
    /// If a label is out of range.
    pub fn loss(&self, pixels: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok(self.forward(pixels)?.cross_entropy(targets)?)
    }

    /// Pictures with the patches where `masked` (`[batch * patches]`) is set predicted from the
    /// others, `[batch, channels, img_h, img_w]`, and the masked L1 loss against `pixels`.
    ///
    /// # Errors
    /// If the model has no masked-image head.
    pub fn reconstruct(&self, pixels: &Tensor, masked: &Arc<[bool]>) -> Result<(Tensor, Tensor)> {
        let (Some(decoder), Head::MaskedImage) = (&self.head, self.config.head) else {
            return Err(crate::Error::Unsuitable {
                what: "reconstruction",
                needs: "a ViT with a masked-image head",
                is: "a ViT without one".to_owned(),
            });
        };
        let c = &self.config;
        let features = self.norm.forward(&self.encode(pixels, Some(masked), Pass::default())?)?;
        let &[batch, _, img_h, img_w] = &pixels.shape()[..] else {
            return Err(ocelli_tensor::Error::Shape {
                op: "reconstruct",
                expected: "[batch, channels, img_h, img_w]".to_owned(),
                got: pixels.shape().clone(),
            }
            .into());
        };
        let (grid_h, grid_w) = c.grid((img_h, img_w));
        let (p, patches) = (c.patch_size, grid_h * grid_w);
        let x = features.narrow(1, usize::from(c.has_class_token), patches)?;
        let x = decoder.forward(&x)?; // [batch, patches, channels patch patch]
        let x = x.reshape(&[batch, grid_h, grid_w, c.channels, p, p])?;
        let x = x.permute(&[0, 3, 1, 4, 2, 5])?; // [batch, channels, grid_h, patch, grid_w, patch]
        let x = x.reshape(&[batch, c.channels, grid_h * p, grid_w * p])?;
        let mut weights = Vec::with_capacity(batch * img_h * img_w);
        for sample in 0..batch {
            for y in 0..grid_h * p {
                let row = &masked[sample * patches + y / p * grid_w..][..grid_w];
                weights.extend((0..grid_w * p).map(|x| f32::from(u8::from(row[x / p]))));
            }
        }
        let per_pixel = Tensor::from_slice(&weights, &[batch, 1, grid_h * p, grid_w * p])?;
        let copies = vec![&per_pixel; c.channels];
        let mask = Tensor::cat(&copies, 1)?; // [batch, channels, img_h, img_w]
        // The mask counts each pixel once per channel in both sums; the loss divides by the
        // channels once more than a mean would.
        let loss = x.masked_l1_loss(pixels, &mask)?;
        Ok((x, loss))
    }
}

/// transformers `ViTModel` and its heads; `~` is `vit.` or nothing.
pub const TRANSFORMERS: &[Name] = &[
    copy("class", "~embeddings.cls_token").leading(2),
    copy("position", "~embeddings.position_embeddings").leading(1),
    copy("mask_token", "~embeddings.mask_token").leading(2),
    copy("patch.*", "~embeddings.patch_embeddings.projection.*"),
    copy("blocks.*.norm1.*", "~encoder.layer.*.layernorm_before.*"),
    concat("blocks.*.attn.qkv.*", "~encoder.layer.*.attention.attention.{query,key,value}.*"),
    copy("blocks.*.attn.out.*", "~encoder.layer.*.attention.output.dense.*"),
    copy("blocks.*.norm2.*", "~encoder.layer.*.layernorm_after.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layer.*.intermediate.dense.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layer.*.output.dense.*"),
    copy("norm.*", "~layernorm.*"),
    copy("pooler.*", "~pooler.dense.*"),
    copy("head.*", "classifier.*"),
    copy("decoder.*", "decoder.0.*"),
];

/// transformers `Dinov2Model`; `~` is `dinov2.` or nothing.
pub const DINOV2: &[Name] = &[
    copy("class", "~embeddings.cls_token").leading(2),
    copy("position", "~embeddings.position_embeddings").leading(1),
    copy("mask_token", "~embeddings.mask_token").leading(1),
    copy("patch.*", "~embeddings.patch_embeddings.projection.*"),
    copy("blocks.*.norm1.*", "~encoder.layer.*.norm1.*"),
    concat("blocks.*.attn.qkv.*", "~encoder.layer.*.attention.attention.{query,key,value}.*"),
    copy("blocks.*.attn.out.*", "~encoder.layer.*.attention.output.dense.*"),
    copy("blocks.*.scale1", "~encoder.layer.*.layer_scale1.lambda1"),
    copy("blocks.*.norm2.*", "~encoder.layer.*.norm2.*"),
    copy("blocks.*.mlp.up.*", "~encoder.layer.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "~encoder.layer.*.mlp.fc2.*"),
    copy("blocks.*.scale2", "~encoder.layer.*.layer_scale2.lambda1"),
    copy("norm.*", "~layernorm.*"),
];

/// timm `VisionTransformer`, pooled by the class token.
pub const TIMM: &[Name] = &[
    copy("class", "cls_token").leading(2),
    copy("position", "pos_embed").leading(1),
    copy("patch.*", "patch_embed.proj.*"),
    copy("blocks.*.norm1.*", "blocks.*.norm1.*"),
    copy("blocks.*.attn.qkv.*", "blocks.*.attn.qkv.*"),
    copy("blocks.*.attn.out.*", "blocks.*.attn.proj.*"),
    copy("blocks.*.norm2.*", "blocks.*.norm2.*"),
    copy("blocks.*.mlp.up.*", "blocks.*.mlp.fc1.*"),
    copy("blocks.*.mlp.down.*", "blocks.*.mlp.fc2.*"),
    copy("blocks.*.scale1", "blocks.*.ls1.gamma"),
    copy("blocks.*.scale2", "blocks.*.ls2.gamma"),
    copy("norm.*", "~norm.*"),
    copy("head.*", "head.*"),
];

/// The original `.npz` files; `~` is `opt/target/` or nothing.
pub const JAX: &[Name] = &[
    copy("class", "~cls").leading(2),
    copy("position", "~Transformer/posembed_input/pos_embedding").leading(1),
    copy("patch.weight", "~embedding/kernel").hwio(),
    copy("patch.bias", "~embedding/bias"),
    copy("blocks.*.norm1.weight", "~Transformer/encoderblock_*/LayerNorm_0/scale"),
    copy("blocks.*.norm1.bias", "~Transformer/encoderblock_*/LayerNorm_0/bias"),
    transpose(
        "blocks.*.attn.qkv.weight",
        "~Transformer/encoderblock_*/MultiHeadDotProductAttention_1/{query,key,value}/kernel",
        1,
    ),
    concat(
        "blocks.*.attn.qkv.bias",
        "~Transformer/encoderblock_*/MultiHeadDotProductAttention_1/{query,key,value}/bias",
    ),
    transpose(
        "blocks.*.attn.out.weight",
        "~Transformer/encoderblock_*/MultiHeadDotProductAttention_1/out/kernel",
        2,
    ),
    copy(
        "blocks.*.attn.out.bias",
        "~Transformer/encoderblock_*/MultiHeadDotProductAttention_1/out/bias",
    ),
    copy("blocks.*.norm2.weight", "~Transformer/encoderblock_*/LayerNorm_2/scale"),
    copy("blocks.*.norm2.bias", "~Transformer/encoderblock_*/LayerNorm_2/bias"),
    transpose("blocks.*.mlp.up.weight", "~Transformer/encoderblock_*/MlpBlock_3/Dense_0/kernel", 1),
    copy("blocks.*.mlp.up.bias", "~Transformer/encoderblock_*/MlpBlock_3/Dense_0/bias"),
    transpose(
        "blocks.*.mlp.down.weight",
        "~Transformer/encoderblock_*/MlpBlock_3/Dense_1/kernel",
        1,
    ),
    copy("blocks.*.mlp.down.bias", "~Transformer/encoderblock_*/MlpBlock_3/Dense_1/bias"),
    copy("norm.weight", "~Transformer/encoder_norm/scale"),
    copy("norm.bias", "~Transformer/encoder_norm/bias"),
    transpose("pooler.weight", "~pre_logits/kernel", 1),
    copy("pooler.bias", "~pre_logits/bias"),
    transpose("head.weight", "~head/kernel", 1),
    copy("head.bias", "~head/bias"),
];

/// The map of a checkpoint family's table.
pub fn names(table: &[Name], prefix: &str) -> Names {
    Names::family(table, &["embeddings.position_ids"]).with_prefix(prefix)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn published_sizes_have_their_parameters() {
        for (name, millions) in [
            ("S/16", 22_050_664),
            ("B/16", 86_567_656),
            ("L/16", 304_326_632),
            ("H/14", 632_045_800),
        ] {
            let config = VitConfig::variant(name).unwrap();
            let w = config.width;
            let block = 4 * w * w + 4 * w + 2 * w * config.mlp_dim + config.mlp_dim + w + 4 * w;
            let patch = config.patch_size * config.patch_size * 3 * w + w;
            let total =
                config.depth * block + patch + w + config.tokens() * w + 2 * w + 1000 * w + 1000;
            assert_eq!(total, millions, "{name}");
        }
        assert!(VitConfig::variant("Q/16").is_none() && VitConfig::variant("B/0").is_none());
        let b16 = VitConfig::variant("B/16").unwrap();
        assert_eq!(b16.tokens(), 197);
        assert_eq!(b16.flops() / 100_000_000, 351);
    }
}
