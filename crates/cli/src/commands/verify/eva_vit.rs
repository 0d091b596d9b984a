//! Results of a tower of EVA-CLIP and of the trunk of CLIP's.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_models::vision::clip_vit::ClipVit;
use ocelli_models::vision::eva_vit::EvaVit;
use ocelli_tensor::{Tensor, no_grad};

/// Epsilon of the norm that LAVIS puts behind the tower.
const LAVIS_NORM_EPS: f32 = 1e-5;

pub(super) fn outputs(case: &Case, model: &EvaVit, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        let Some(pixels) = case.tensor("in/x")? else { return Ok(()) };
        let y = model.forward(&pixels)?;
        let norm = (case.tensor("in/ln_vision.weight")?, case.tensor("in/ln_vision.bias")?);
        if let (Some(weight), Some(bias)) = norm {
            let normalised = y.layer_norm(&weight, &bias, LAVIS_NORM_EPS)?;
            computed.insert("out/ln_vision_eps1e-5".to_owned(), normalised);
        }
        for (i, state) in model.hidden_states(&pixels)?.into_iter().skip(1).enumerate() {
            computed.insert(format!("tap/block{i}"), state);
        }
        computed.insert("out/y".to_owned(), y);
        if let Some(pixels) = case.tensor("in/x_double_size")? {
            let size = (pixels.shape()[2], pixels.shape()[3]);
            computed.insert("out/pos_embed_double_size".to_owned(), model.positions(size)?);
            computed.insert("out/y_double_size".to_owned(), model.forward(&pixels)?);
        }
        if let Some(value) = loss(case, model)? {
            computed.insert("out/loss".to_owned(), value);
        }
        Ok::<(), Failure>(())
    })?;
    super::gradients::of_input(case, "x", &mut |x| loss_of(case, model, x), computed)
}

/// The sum of the tokens, each value times a weight of the case.
pub(super) fn loss(case: &Case, model: &EvaVit) -> Result<Option<Tensor>, Failure> {
    let Some(pixels) = case.tensor("in/x")? else { return Ok(None) };
    loss_of(case, model, &pixels)
}

fn loss_of(case: &Case, model: &EvaVit, pixels: &Tensor) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    Ok(Some(model.forward(pixels)?.mul(&weight)?.sum()?))
}

pub(super) fn clip_outputs(
    case: &Case,
    model: &ClipVit,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| {
        let side = model.config().patch_size;
        for name in case.expected() {
            let Some((rows, cols)) =
                name.strip_prefix("out/positions_").and_then(|grid| grid.split_once('x'))
            else {
                continue;
            };
            let (Ok(rows), Ok(cols)) = (rows.parse::<usize>(), cols.parse::<usize>()) else {
                continue;
            };
            computed.insert(name, model.positions((rows * side, cols * side))?);
        }
        let Some(pixels) = case.tensor("in/image")? else { return Ok(()) };
        let states = model.hidden_states(&pixels)?;
        computed.insert("out/ln_pre".to_owned(), states[0].clone());
        for (i, state) in states.iter().skip(1).enumerate() {
            computed.insert(format!("out/block{i}"), state.clone());
        }
        computed.insert("out/features".to_owned(), model.features(&pixels)?);
        Ok(())
    })
}
