//! Results of a ViT.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_models::vision::resnet_v2::HybridVit;
use ocelli_models::vision::vit::{Head, Vit};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::sync::Arc;

pub(super) fn outputs(case: &Case, model: &Vit, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        if let Some(pixels) = case.tensor("in/pixel_values")? {
            tokens(model, &pixels, computed)?;
        }
        // Pictures of other sizes: the position table is resampled.
        for input in case.inputs("in/pixel_values_") {
            let suffix = &input["in/pixel_values".len()..];
            let Some(pixels) = case.tensor(&input)? else { continue };
            let size = (pixels.shape()[2], pixels.shape()[3]);
            computed.insert(format!("out/pos_embed{suffix}"), model.positions(size)?);
            computed.insert(format!("out/embeddings{suffix}"), model.embed(&pixels, None)?);
            computed.insert(format!("out/logits{suffix}"), model.forward(&pixels)?);
        }
        // Grids of patches by name: pos_embed_zoom_7x7.
        for name in case.expected() {
            let Some(grid) = name.strip_prefix("out/pos_embed_zoom_") else { continue };
            let sides =
                grid.split_once('x').and_then(|(h, w)| Some((h.parse().ok()?, w.parse().ok()?)));
            let Some((grid_h, grid_w)) = sides else { continue };
            let (grid_h, grid_w): (usize, usize) = (grid_h, grid_w);
            let side = model.config().patch_size;
            let table = model.positions((grid_h * side, grid_w * side))?;
            computed.insert(name, table);
        }
        if let Some(value) = loss(case, model)? {
            computed.insert("out/loss".to_owned(), value);
        }
        if let (Some(pixels), Some(masked)) = (case.tensor("in/pixel_values")?, masked(case)?) {
            let (picture, _) = model.reconstruct(&pixels, &masked)?;
            computed.insert("out/reconstruction".to_owned(), picture);
        }
        Ok(())
    })
}

fn tokens(model: &Vit, pixels: &Tensor, computed: &mut Computed) -> Result<(), Failure> {
    let states = model.hidden_states(pixels)?;
    computed.insert("out/embeddings".to_owned(), states[0].clone());
    for (i, state) in states.iter().enumerate() {
        computed.insert(format!("out/hidden_states.{i}"), state.clone());
        if i > 0 {
            computed.insert(format!("out/layer{}", i - 1), state.clone());
        }
    }
    let features = model.features(pixels)?;
    computed.insert("out/pre_logits".to_owned(), model.pool(&features)?);
    for name in ["features", "last_hidden_state", "final_norm"] {
        computed.insert(format!("out/{name}"), features.clone());
    }
    let name = match model.config().head {
        Head::Pooler => "out/pooler_output",
        _ => "out/logits",
    };
    computed.insert(name.to_owned(), model.forward(pixels)?);
    Ok(())
}

fn masked(case: &Case) -> Result<Option<Arc<[bool]>>, Failure> {
    let ids = case.ids("in/bool_masked_pos")?;
    Ok(ids.map(|ids| ids.iter().map(|v| *v != 0).collect()))
}

fn labels(case: &Case) -> Result<Option<Targets>, Failure> {
    Ok(case.ids("in/labels")?.map(|ids| Targets::Classes(ids, 0.0)))
}

pub(super) fn loss(case: &Case, model: &Vit) -> Result<Option<Tensor>, Failure> {
    let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(None) };
    if let Some(masked) = masked(case)? {
        return Ok(Some(model.reconstruct(&pixels, &masked)?.1));
    }
    match labels(case)? {
        Some(labels) => Ok(Some(model.loss(&pixels, &labels)?)),
        None => Ok(None),
    }
}

pub(super) fn hybrid_outputs(
    case: &Case,
    model: &HybridVit,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
    no_grad(|| {
        let mut x = model.backbone.stem(&pixels)?;
        computed.insert("out/stem".to_owned(), x.clone());
        let mut stage = 0;
        while case.wants(&format!("out/block_stage{stage}")) {
            x = model.backbone.stage(stage, &x)?;
            computed.insert(format!("out/block_stage{stage}"), x.clone());
            stage += 1;
        }
        let map = model.backbone.forward(&pixels)?;
        tokens(&model.vit, &map, computed)?;
        computed.insert("out/feature_map".to_owned(), map);
        if let Some(value) = hybrid_loss(case, model)? {
            computed.insert("out/loss".to_owned(), value);
        }
        Ok(())
    })
}

pub(super) fn hybrid_loss(case: &Case, model: &HybridVit) -> Result<Option<Tensor>, Failure> {
    match (case.tensor("in/pixel_values")?, labels(case)?) {
        (Some(pixels), Some(labels)) => Ok(Some(model.loss(&pixels, &labels)?)),
        _ => Ok(None),
    }
}
