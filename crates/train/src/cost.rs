//! What a sample costs: operations of a forward pass, and values that the tape keeps for its
//! gradient. Both follow from the sizes of a model; the second is about right.

use ocelli_models::Model;
use ocelli_models::systems::clip::VisionConfig;
use ocelli_models::vision::clip_resnet::ModifiedResNetConfig;
use ocelli_models::vision::resnet_v2::ResNetV2Config;
use std::ops::Add;

/// What one sample costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    /// Operations of a forward pass, a multiply-add counted as two.
    pub(crate) operations: f64,
    /// Values that the tape keeps.
    pub(crate) values: usize,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { operations: self.operations + other.operations, values: self.values + other.values }
    }
}

/// Of the vision tower and of the text tower; `is_checkpointed` says whether blocks of transformers
/// are computed a second time for their gradients.
pub(crate) fn cost_of_a_sample(model: &Model, is_checkpointed: bool) -> (Cost, Cost) {
    let none = Cost::default();
    let tower = |tokens, width, mlp_dim, depth| {
        Transformer { tokens, width, mlp_dim, depth }.cost(is_checkpointed)
    };
    match model {
        Model::Vit(vit) => {
            let c = vit.config();
            let cost = tower(c.tokens(), c.width, c.mlp_dim, c.depth);
            (Cost { operations: c.flops() as f64, ..cost }, none)
        }
        Model::Hybrid(hybrid) => {
            let c = hybrid.vit.config();
            let cost = tower(c.tokens(), c.width, c.mlp_dim, c.depth);
            let transformer = Cost { operations: c.flops() as f64, ..cost };
            (transformer + resnet_v2(hybrid.backbone.config(), hybrid.image_size.0), none)
        }
        Model::LocalVit(vit) => {
            let c = vit.config();
            let cost = tower(c.tokens(), c.width, c.mlp_dim, c.depth);
            (Cost { operations: c.flops() as f64, ..cost }, none)
        }
        Model::Clip(clip) => {
            let c = clip.config();
            let vision = match &c.vision {
                VisionConfig::Vit(v) => {
                    let filters = v.tokens() * 3 * v.patch_size.pow(2) * v.width;
                    tower(v.tokens(), v.width, v.mlp_dim, v.depth)
                        + Cost { operations: 2.0 * filters as f64, values: 0 }
                }
                VisionConfig::ResNet(v) => clip_resnet(v),
            };
            (vision, tower(c.text.context_length, c.text.width, c.text.mlp_dim, c.text.depth))
        }
        _ => (none, none),
    }
}

struct Transformer {
    tokens: usize,
    width: usize,
    mlp_dim: usize,
    depth: usize,
}

impl Transformer {
    /// In each block the tape keeps both inputs of the norms and their results, queries, keys,
    /// values, the attended values, and the hidden layer twice; or its input alone, and all that of
    /// one block while its gradient is computed.
    fn cost(&self, is_checkpointed: bool) -> Cost {
        let Self { tokens, width, mlp_dim, depth } = *self;
        let linear = tokens * width * (4 * width + 2 * mlp_dim);
        let attention = 2 * tokens * tokens * width;
        let block = tokens * (8 * width + 2 * mlp_dim);
        Cost {
            operations: 2.0 * (depth * (linear + attention)) as f64,
            values: if is_checkpointed { depth * tokens * width + block } else { depth * block },
        }
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

/// Bottlenecks of several stages behind a stem that leaves a quarter of the side. Of each the tape
/// keeps the results of three convolutions and three norms, the sum and what it becomes.
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
                shortcut = out * inputs * outputs;
            }
            let products = first * inputs * inner
                + middle * 9 * inner * inner
                + out * inner * outputs
                + shortcut;
            let values = 2 * inner * (first + middle) + 4 * outputs * out;
            cost = cost + Cost { operations: 2.0 * products as f64, values };
            inputs = outputs;
        }
    }
    cost
}

fn resnet_v2(c: &ResNetV2Config, image_size: usize) -> Cost {
    let places = image_size.div_ceil(2).pow(2);
    let stem = Cost {
        operations: 2.0 * (places * 3 * 49 * c.stem_channels) as f64,
        values: places * 3 * c.stem_channels,
    };
    stem + stages(&c.layers, &c.channels, c.stem_channels, image_size, Stride::Middle)
}

fn clip_resnet(c: &ModifiedResNetConfig) -> Cost {
    let (places, half) = (c.image_size.div_ceil(2).pow(2), c.width / 2);
    let weights = 9 * (3 * half + half * half + half * c.width);
    let stem = Cost {
        operations: 2.0 * (places * weights) as f64,
        values: places * 2 * (2 * half + c.width),
    };
    let channels = [4, 8, 16, 32].map(|n| n * c.width);
    // Keys and values of all places and their mean, in the pooling at the end.
    let (tokens, last) = (1 + (c.image_size / 32).pow(2), 32 * c.width);
    let pooling =
        Cost { operations: 2.0 * (2 * tokens * last * last) as f64, values: 4 * tokens * last };
    stem + stages(&c.layers, &channels, c.width, c.image_size, Stride::Behind) + pooling
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use ocelli_models::systems::clip::{Clip, ClipConfig};
    use ocelli_models::vision::vit::{Vit, VitConfig};
    use ocelli_nn::Builder;

    /// Of a picture, in units of 10^9.
    fn vision(model: &Model) -> f64 {
        cost_of_a_sample(model, false).0.operations / 1e9
    }

    #[test]
    fn published_models_cost_what_is_known_of_them() {
        // What open_clip's profile of its models lists for a picture.
        for (name, expected) in [("RN50", 12.22), ("ViT-B/32", 8.82), ("ViT-L/14", 162.03)] {
            let clip = Clip::new(&ClipConfig::variant(name).unwrap(), &Builder::zeros());
            let found = vision(&Model::Clip(Box::new(clip)));
            assert!((found / expected - 1.0).abs() < 0.1, "{name}: {found}, not {expected}");
        }
        let config = VitConfig::variant("B/16").unwrap();
        let model = Model::Vit(Box::new(Vit::new(&config, &Builder::zeros())));
        assert!((vision(&model) - 35.1).abs() < 0.1);
        let kept = |is_checkpointed| cost_of_a_sample(&model, is_checkpointed).0.values;
        assert!(kept(true) * 6 < kept(false));
    }
}
