//! What a picture or a text costs a model, counted from its sizes. A multiply-add is two
//! operations; norms, activations and softmax are left out, as papers do.

use ocelli_models::Model;
use ocelli_models::systems::clip::Vision;
use ocelli_models::systems::lit::{Lit, Projection};
use ocelli_models::vision::clip_vit::ClipVitConfig;
use ocelli_models::vision::resnet_v2::HybridVit;
use ocelli_models::vision::vit::VitConfig;
use ocelli_nn::Parameters;

/// What training keeps of a block or a convolution, in multiples of what passes through it.
const KEPT: u64 = 2;

/// What one input costs.
pub(crate) struct Cost {
    /// Positions that attention sees.
    pub(crate) tokens: usize,
    /// Multiply-adds times two.
    pub(super) flops: u64,
    /// Values between the layers at the widest point, per input: an estimate.
    pub(crate) values: u64,
    /// Values that a training step keeps for its backward pass, per input: an estimate.
    pub(crate) kept: u64,
}

/// Of a stack of pre-norm blocks, without what comes before and after them.
fn blocks(tokens: usize, width: usize, mlp_dim: usize, depth: usize) -> u64 {
    let (t, w, m) = (tokens as u64, width as u64, mlp_dim as u64);
    2 * depth as u64 * (t * w * (4 * w + 2 * m) + 2 * t * t * w)
}

/// Residual, norm, queries, keys, values and the hidden layer of one block.
fn block_values(tokens: usize, width: usize, mlp_dim: usize) -> u64 {
    (tokens * (5 * width + mlp_dim)) as u64
}

/// Of a picture at the size that the model is configured for, `(img_h, img_w)`; none if it does
/// not see.
pub(crate) fn picture(model: &Model, parameters: &Parameters) -> Option<(Cost, (usize, usize))> {
    Some(match model {
        Model::Vit(vit) => (of_vit(vit.config()), vit.config().image_size),
        Model::Lit(lit) => {
            let c = lit.config();
            let mut cost = of_vit(&c.vision);
            cost.flops += projection(lit, c.image_features());
            (cost, c.vision.image_size)
        }
        Model::Hybrid(hybrid) => of_hybrid(hybrid, parameters),
        Model::LocalVit(vit) => {
            let c = vit.config();
            let values = block_values(c.tokens(), c.width, c.mlp_dim);
            let kept = KEPT * c.depth as u64 * values;
            (Cost { tokens: c.tokens(), flops: c.flops(), values, kept }, c.image_size)
        }
        Model::Clip(clip) => {
            let size = clip.config().vision.image_size();
            let cost = match clip.vision() {
                Vision::Vit(tower) => of_clip_vit(tower.config(), clip.config().embed_dim),
                Vision::ResNet(tower) => of_clip_resnet(tower.config().image_size, parameters),
            };
            (cost, size)
        }
        _ => return None,
    })
}

/// What is learned on a tower of LiT with this many features, in operations.
fn projection(lit: &Lit, features: usize) -> u64 {
    let embed_dim = lit.config().embed_dim;
    2 * match lit.config().projection {
        Projection::Linear => features * embed_dim,
        Projection::Mlp(hidden) => hidden * (features + embed_dim),
    } as u64
}

pub(super) fn of_vit(c: &VitConfig) -> Cost {
    let tokens = c.tokens();
    let values = block_values(tokens, c.width, c.mlp_dim);
    Cost { tokens, flops: c.flops(), values, kept: KEPT * c.depth as u64 * values }
}

fn of_clip_vit(c: &ClipVitConfig, embed_dim: usize) -> Cost {
    let tokens = c.tokens();
    let patches = ((tokens - 1) * 3 * c.patch_size * c.patch_size * c.width) as u64;
    let flops =
        blocks(tokens, c.width, c.mlp_dim, c.depth) + 2 * (patches + (c.width * embed_dim) as u64);
    let values = block_values(tokens, c.width, c.mlp_dim);
    Cost { tokens, flops, values, kept: KEPT * c.depth as u64 * values }
}

/// Of a text as long as the context; none if the model does not read.
pub(crate) fn text(model: &Model) -> Option<Cost> {
    let (tokens, width, mlp_dim, depth, projection) = match model {
        Model::Clip(clip) => {
            let c = &clip.config().text;
            let projection = c.width * clip.config().embed_dim;
            (c.context_length, c.width, c.mlp_dim, c.depth, 2 * projection as u64)
        }
        Model::Lit(lit) => {
            let c = &lit.config().text;
            (c.context_length, c.width, c.mlp_dim, c.depth, projection(lit, c.width))
        }
        Model::Bert(bert) => {
            let c = bert.config();
            (c.context_length, c.width, c.mlp_dim, c.depth, 0)
        }
        _ => return None,
    };
    let flops = blocks(tokens, width, mlp_dim, depth) + projection;
    let values = block_values(tokens, width, mlp_dim);
    Some(Cost { tokens, flops, values, kept: KEPT * depth as u64 * values })
}

/// Of the convolutions whose filters are called `*.weight`, `[out, in, kernel, kernel]`;
/// `side` gives the side of each one's output grid from the parts of its name. Operations, values at
/// the widest point, and values that training keeps.
fn convolutions(parameters: &Parameters, side: impl Fn(&[&str]) -> Option<usize>) -> [u64; 3] {
    let (mut flops, mut largest, mut all) = (0, 0, 0);
    for p in parameters.iter() {
        let shape = p.shape();
        let names: Vec<&str> = p.name().split('.').collect();
        if let ([outputs, ..], 4, Some(side)) = (&shape[..], shape.len(), side(&names)) {
            let positions = (side * side) as u64;
            flops += 2 * positions * shape.iter().product::<usize>() as u64;
            let values = positions * *outputs as u64;
            (largest, all) = (largest.max(2 * values), all + values);
        }
    }
    [flops, largest, KEPT * all]
}

/// The backbone halves the grid in its stem twice and in each stage but the first, with the second
/// convolution of a stage's first block.
pub(super) fn of_hybrid(hybrid: &HybridVit, parameters: &Parameters) -> (Cost, (usize, usize)) {
    let vit = hybrid.vit.config();
    let stages = 1 + parameters
        .iter()
        .filter_map(|p| stage_and_block(&p.name().split('.').collect::<Vec<_>>()).map(|s| s.0))
        .max()
        .unwrap_or(0);
    let stride = 2 << stages;
    let (grid_h, grid_w) = vit.image_size;
    let image = (grid_h * stride, grid_w * stride);
    let [flops, values, kept] = convolutions(parameters, |names| {
        let Some((stage, block)) = stage_and_block(names) else {
            return names.contains(&"stem").then_some(image.0 / 2);
        };
        let out = (image.0 / 4) >> stage;
        let is_before_stride = stage > 0 && block == 0 && names.contains(&"conv1");
        Some(if is_before_stride { 2 * out } else { out })
    });
    let tokens = of_vit(vit);
    let values = values.max(tokens.values);
    let (flops, kept) = (flops + tokens.flops, kept + tokens.kept);
    (Cost { tokens: tokens.tokens, flops, values, kept }, image)
}

/// The numbers behind `stages`.
fn stage_and_block(names: &[&str]) -> Option<(usize, usize)> {
    let at = names.iter().position(|name| *name == "stages")?;
    let mut numbers = names[at..].iter().filter_map(|name| name.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// A tower of CLIP: it pools behind the second convolution of a stage's first block, and at its end
/// one query attends to all positions.
fn of_clip_resnet(image: usize, parameters: &Parameters) -> Cost {
    let [flops, values, kept] = convolutions(parameters, |names| {
        let ["vision", layer, rest @ ..] = names else { return None };
        let Some(layer) = layer.strip_prefix("layer") else { return Some(image / 2) };
        let layer: usize = layer.parse().ok()?;
        let out = (image / 4) >> (layer - 1);
        let is_before_pool =
            layer > 1 && rest[0] == "0" && (rest[1] == "conv1" || rest[1] == "conv2");
        Some(if is_before_pool { 2 * out } else { out })
    });
    let positions = (image / 32) * (image / 32) + 1;
    let width = parameters.get("vision.attnpool.k_proj.weight").map_or(0, |p| p.shape()[0]);
    let joint = parameters.get("vision.attnpool.c_proj.weight").map_or(0, |p| p.shape()[0]);
    let pool = 2 * width * width * (1 + 2 * positions) + 4 * positions * width + 2 * width * joint;
    Cost { tokens: positions, flops: flops + pool as u64, values, kept }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use ocelli_models::systems::clip::{Clip, ClipConfig};
    use ocelli_nn::Builder;

    fn gflop(name: &str) -> f64 {
        let b = Builder::zeros();
        let model = Model::Clip(Box::new(Clip::new(&ClipConfig::variant(name).unwrap(), &b)));
        let parameters = b.finish().unwrap();
        picture(&model, &parameters).unwrap().0.flops as f64 / 1e9
    }

    /// In 10^9 multiply-adds. The ViTs are as published tables count them; RN50 is the 4.09 of a
    /// ResNet-50 with the deeper stem, three convolutions in front of their stride, and the pooling.
    #[test]
    fn towers_cost_what_is_known() {
        let known = [("ViT-B/32", 4.4), ("ViT-B/16", 17.6), ("ViT-L/14", 81.0), ("RN50", 5.79)];
        for (name, gmac) in known {
            let found = gflop(name) / 2.0;
            assert!((found / gmac - 1.0).abs() < 0.03, "{name}: {found}");
        }
    }
}
