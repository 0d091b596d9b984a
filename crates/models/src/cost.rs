//! What a picture or a text costs a model, counted from its sizes. A multiply-add is two operations;
//! norms, activations and softmax are left out, as papers do. What is kept in memory is about right.

use crate::load::Model;
use crate::systems::clip::VisionConfig;
use crate::systems::lit::{Lit, Projection};
use crate::vision::clip_resnet::ModifiedResNetConfig;
use crate::vision::clip_vit::ClipVitConfig;
use crate::vision::nfnet::NfNetConfig;
use crate::vision::resnet_v2::{HybridVit, ResNetV2Config};
use crate::vision::timm_vit::TimmProjection;
use crate::vision::vit::VitConfig;

/// What one input costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Positions that attention sees.
    pub tokens: usize,
    /// Operations of a forward pass.
    pub operations: u64,
    /// Values in memory at once in use.
    pub values: u64,
    /// Values that the tape keeps for a gradient.
    pub kept: u64,
}

/// Of a picture at the size that the model is configured for, `(img_h, img_w)`; none if it does
/// not see. `is_checkpointed` says whether blocks of transformers are computed a second time for
/// their gradients.
pub fn of_picture(model: &Model, is_checkpointed: bool) -> Option<(Cost, (usize, usize))> {
    Some(match model {
        Model::Vit(vit) => (of_vit(vit.config(), is_checkpointed), vit.config().image_size),
        Model::Lit(lit) => {
            let c = lit.config();
            let mut cost = of_vit(&c.vision, is_checkpointed);
            cost.operations += of_projections(lit)[0].operations;
            (cost, c.vision.image_size)
        }
        Model::Hybrid(hybrid) => (of_hybrid(hybrid, is_checkpointed), hybrid.image_size),
        Model::NfNet(net) => {
            let side = net.config().image_size;
            (of_nfnet(net.config()), (side, side))
        }
        Model::LocalVit(vit) => {
            let c = vit.config();
            let encoder = Encoder::new(c.tokens(), c.width, c.mlp_dim, c.depth);
            (Cost { operations: c.flops(), ..encoder.cost(is_checkpointed) }, c.image_size)
        }
        Model::Clip(clip) => {
            let c = clip.config();
            let cost = match &c.vision {
                VisionConfig::Vit(v) => of_clip_vit(v, c.embed_dim, is_checkpointed),
                VisionConfig::ResNet(v) => of_clip_resnet(v, c.embed_dim),
                VisionConfig::TimmVit(v) => {
                    let cost = of_vit(&v.vit, is_checkpointed);
                    let (width, joint) = (v.vit.width, c.embed_dim);
                    let products = match v.projection {
                        TimmProjection::Linear => width * joint,
                        TimmProjection::Mlp => 2 * joint * (width + joint),
                    };
                    Cost { operations: cost.operations + 2 * products as u64, ..cost }
                }
            };
            (cost, c.vision.image_size())
        }
        _ => return None,
    })
}

/// Of a text as long as the context; none if the model does not read.
pub fn of_text(model: &Model, is_checkpointed: bool) -> Option<Cost> {
    let (encoder, projection) = match model {
        Model::Clip(clip) => {
            let c = &clip.config().text;
            let projection = 2 * (c.width * clip.config().embed_dim) as u64;
            (Encoder::new(c.context_length, c.width, c.mlp_dim, c.depth), projection)
        }
        Model::Lit(lit) => {
            let c = &lit.config().text;
            let encoder = Encoder::new(c.context_length, c.width, c.mlp_dim, c.depth);
            (encoder, of_projections(lit)[1].operations)
        }
        Model::Bert(bert) => {
            let c = bert.config();
            (Encoder::new(c.context_length, c.width, c.mlp_dim, c.depth), 0)
        }
        _ => return None,
    };
    let cost = encoder.cost(is_checkpointed);
    Some(Cost { operations: cost.operations + projection, ..cost })
}

/// Of what is learned on the two towers of a LiT, for a picture and for a text.
pub fn of_projections(lit: &Lit) -> [Cost; 2] {
    let c = lit.config();
    [c.image_features(), c.text.width].map(|features| {
        let (products, hidden) = match c.projection {
            Projection::Linear => (features * c.embed_dim, 0),
            Projection::Mlp(hidden) => (hidden * (features + c.embed_dim), 2 * hidden),
        };
        let values = (2 * features + hidden + c.embed_dim) as u64;
        Cost { tokens: 1, operations: 2 * products as u64, values, kept: values }
    })
}

/// Of a picture through a Vision Transformer.
pub fn of_vit(c: &VitConfig, is_checkpointed: bool) -> Cost {
    let encoder = Encoder::new(c.tokens(), c.width, c.mlp_dim, c.depth);
    Cost { operations: c.flops(), ..encoder.cost(is_checkpointed) }
}

/// Of a picture through a hybrid.
pub fn of_hybrid(hybrid: &HybridVit, is_checkpointed: bool) -> Cost {
    let transformer = of_vit(hybrid.vit.config(), is_checkpointed);
    transformer.behind(of_resnet_v2(hybrid.backbone.config(), hybrid.image_size.0))
}

fn of_clip_vit(c: &ClipVitConfig, embed_dim: usize, is_checkpointed: bool) -> Cost {
    let encoder = Encoder::new(c.tokens(), c.width, c.mlp_dim, c.depth);
    let cost = encoder.cost(is_checkpointed);
    let patches = (c.tokens() - 1) * 3 * c.patch_size * c.patch_size * c.width;
    let ends = 2 * (patches + c.width * embed_dim) as u64;
    Cost { operations: cost.operations + ends, ..cost }
}

/// A stack of pre-norm blocks, without what comes before and after them.
struct Encoder {
    tokens: usize,
    width: usize,
    mlp_dim: usize,
    depth: usize,
}

impl Encoder {
    fn new(tokens: usize, width: usize, mlp_dim: usize, depth: usize) -> Self {
        Self { tokens, width, mlp_dim, depth }
    }

    /// In use there are residual, norm, queries, keys, values and the hidden layer of one block. Of
    /// each block the tape keeps both inputs of the norms and their results, queries, keys, values,
    /// the attended values, and the hidden layer twice; or its input alone, and all that of one block
    /// while its gradient is computed.
    fn cost(&self, is_checkpointed: bool) -> Cost {
        let Self { tokens, width, mlp_dim, depth } = *self;
        let linear = tokens * width * (4 * width + 2 * mlp_dim);
        let attention = 2 * tokens * tokens * width;
        let block = tokens * (8 * width + 2 * mlp_dim);
        let kept = if is_checkpointed { depth * tokens * width + block } else { depth * block };
        Cost {
            tokens,
            operations: 2 * (depth * (linear + attention)) as u64,
            values: (tokens * (5 * width + mlp_dim)) as u64,
            kept: kept as u64,
        }
    }
}

impl Cost {
    /// Of what comes first and then of this, whose tokens they are.
    fn behind(self, first: Self) -> Self {
        Self {
            tokens: self.tokens,
            operations: first.operations + self.operations,
            values: first.values.max(self.values),
            kept: first.kept + self.kept,
        }
    }

    /// Of convolutions: `products` multiply-adds, and results that stay until all are there, in use
    /// as for a gradient.
    fn of_convolutions(products: usize, results: usize) -> Self {
        let results = results as u64;
        Self { tokens: 0, operations: 2 * products as u64, values: results, kept: results }
    }
}

/// Where the stride of a stage lies in its first bottleneck.
#[derive(Clone, Copy)]
enum Stride {
    /// In the convolution in the middle.
    Middle,
    /// In a pool behind it, as in CLIP.
    Behind,
}

/// Bottlenecks of several stages behind a stem that leaves a quarter of the side. Of each there are
/// the results of three convolutions and three norms, the sum and what it becomes, and those of the
/// shortcut.
fn stages(
    layers: &[usize],
    channels: &[usize],
    stem_channels: usize,
    image_size: usize,
    stride: Stride,
) -> Cost {
    let places = |stage: usize| image_size.div_ceil(4 << stage).pow(2);
    let (mut inputs, mut cost) = (stem_channels, Cost::default());
    for (stage, (&blocks, &outputs)) in layers.iter().zip(channels).enumerate() {
        let inner = outputs / 4;
        for block in 0..blocks {
            let out = places(stage);
            let (mut first, mut middle, mut shortcut) = (out, out, 0);
            if block == 0 {
                first = places(stage.saturating_sub(1));
                middle = if matches!(stride, Stride::Behind) { first } else { out };
                shortcut = out * outputs;
            }
            let products = first * inputs * inner
                + middle * 9 * inner * inner
                + out * inner * outputs
                + shortcut * inputs;
            let results = 2 * inner * (first + middle) + 4 * outputs * out + 2 * shortcut;
            let mut bottleneck = Cost::of_convolutions(products, results);
            bottleneck.values += (first * inputs) as u64;
            cost = bottleneck.behind(cost);
            inputs = outputs;
        }
    }
    cost
}

fn of_resnet_v2(c: &ResNetV2Config, image_size: usize) -> Cost {
    let places = image_size.div_ceil(2).pow(2);
    let stem =
        Cost::of_convolutions(places * 3 * 49 * c.stem_channels, places * 3 * c.stem_channels);
    stages(&c.layers, &c.channels, c.stem_channels, image_size, Stride::Middle).behind(stem)
}

/// Four convolutions in front, then bottlenecks whose middle is in groups. Of each there are the
/// results of four convolutions and what they become, and those of the shortcut.
fn of_nfnet(c: &NfNetConfig) -> Cost {
    let places = |stage: usize| c.image_size.div_ceil(4 << stage).pow(2);
    let (half, s) = (c.image_size.div_ceil(2).pow(2), c.stem_channels);
    let parts =
        [(half, 3, s / 8), (half, s / 8, s / 4), (half, s / 4, s / 2), (places(0), s / 2, s)];
    let products = parts.iter().map(|(out, inputs, outputs)| out * 9 * inputs * outputs).sum();
    let results = parts.iter().map(|(out, _, outputs)| 2 * out * outputs).sum();
    let (mut inputs, mut cost) = (s, Cost::of_convolutions(products, results));
    for (stage, (&blocks, &outputs)) in c.depths.iter().zip(&c.channels).enumerate() {
        let inner = c.inner(outputs);
        for block in 0..blocks {
            let out = places(stage);
            let before = if block == 0 { places(stage.saturating_sub(1)) } else { out };
            let shortcut = if inputs == outputs && before == out { 0 } else { out * outputs };
            let products = before * inputs * inner
                + 2 * out * 9 * inner * c.group_width
                + out * inner * outputs
                + shortcut * inputs;
            let results = 2 * inner * (before + 2 * out) + 3 * outputs * out + shortcut;
            let mut bottleneck = Cost::of_convolutions(products, results);
            bottleneck.values += (before * inputs) as u64;
            cost = bottleneck.behind(cost);
            inputs = outputs;
        }
    }
    let last = places(c.depths.len().saturating_sub(1));
    let products = last * inputs * c.features + c.features * c.classes;
    let end = Cost { tokens: last, ..Cost::of_convolutions(products, 2 * last * c.features) };
    end.behind(cost)
}

/// Three convolutions in front, and at the end one query that attends to all places and their mean.
fn of_clip_resnet(c: &ModifiedResNetConfig, embed_dim: usize) -> Cost {
    let (places, half) = (c.image_size.div_ceil(2).pow(2), c.width / 2);
    let products = places * 9 * (3 * half + half * half + half * c.width);
    let stem = Cost::of_convolutions(products, places * 2 * (2 * half + c.width));
    let channels = [4, 8, 16, 32].map(|n| n * c.width);
    let stages = stages(&c.layers, &channels, c.width, c.image_size, Stride::Behind);
    let (tokens, last) = (1 + (c.image_size / 32).pow(2), 32 * c.width);
    let products = last * last * (1 + 2 * tokens) + 2 * tokens * last + last * embed_dim;
    let pooling = Cost { tokens, ..Cost::of_convolutions(products, 4 * tokens * last) };
    pooling.behind(stages.behind(stem))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use crate::systems::clip::{Clip, ClipConfig};
    use crate::vision::vit::Vit;
    use ocelli_nn::Builder;

    fn clip(name: &str) -> Model {
        let config = ClipConfig::variant(name).unwrap();
        Model::Clip(Box::new(Clip::new(&config, &Builder::zeros())))
    }

    // In 10^9 multiply-adds. The ViTs are as published tables count them; RN50 is the 4.09 of a
    // ResNet-50 with the deeper stem, three convolutions in front of their stride, and the pooling.
    #[test]
    fn towers_cost_what_is_known() {
        let known = [("ViT-B/32", 4.4), ("ViT-B/16", 17.6), ("ViT-L/14", 81.0), ("RN50", 5.79)];
        for (name, gmac) in known {
            let found = of_picture(&clip(name), false).unwrap().0.operations as f64 / 2e9;
            assert!((found / gmac - 1.0).abs() < 0.03, "{name}: {found}");
        }
        // What open_clip's profile of its models lists for both towers.
        for (name, gmac) in [("ViT-B/32", 7.40), ("ViT-L/14", 87.73), ("RN50", 9.09)] {
            let model = clip(name);
            let costs = [of_picture(&model, false).unwrap().0, of_text(&model, false).unwrap()];
            let found = costs.iter().map(|c| c.operations as f64 / 2e9).sum::<f64>();
            assert!((found / gmac - 1.0).abs() < 0.05, "{name}: {found}");
        }
    }

    // In 10^9 multiply-adds, as timm lists them at the size of use.
    #[test]
    fn networks_without_norms_cost_what_is_known() {
        for (name, gmac) in [("F0", 12.62), ("F1", 35.97), ("F6", 378.69)] {
            let found = of_nfnet(&NfNetConfig::variant(name).unwrap()).operations as f64 / 2e9;
            assert!((found / gmac - 1.0).abs() < 0.03, "{name}: {found}");
        }
    }

    #[test]
    fn blocks_computed_twice_keep_less() {
        let config = VitConfig::variant("B/16").unwrap();
        let model = Model::Vit(Box::new(Vit::new(&config, &Builder::zeros())));
        let kept = |is_checkpointed| of_picture(&model, is_checkpointed).unwrap().0.kept;
        assert!(kept(true) * 6 < kept(false));
    }
}
