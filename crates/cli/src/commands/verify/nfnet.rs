//! Results of an NFNet.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_models::vision::nfnet::NfNet;
use ocelli_tensor::{Tensor, no_grad};

pub(super) fn outputs(case: &Case, model: &NfNet, computed: &mut Computed) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/x")? else { return Ok(()) };
    no_grad(|| {
        computed.insert("tap/stem".to_owned(), model.stem(&pixels)?);
        for (i, map) in model.stages(&pixels)?.into_iter().enumerate() {
            computed.insert(format!("tap/stage{i}"), map);
        }
        computed.insert("tap/features".to_owned(), model.features(&pixels)?);
        computed.insert("out/logits".to_owned(), model.forward(&pixels)?);
        if let Some(value) = weighted(case, model, &pixels)? {
            computed.insert("out/loss".to_owned(), value);
        }
        Ok::<(), Failure>(())
    })?;
    super::gradients::of_input(case, "x", &mut |x| weighted(case, model, x), computed)
}

/// The sum of the logits, each times a weight of the case.
pub(super) fn loss(case: &Case, model: &NfNet) -> Result<Option<Tensor>, Failure> {
    let Some(pixels) = case.tensor("in/x")? else { return Ok(None) };
    weighted(case, model, &pixels)
}

fn weighted(case: &Case, model: &NfNet, pixels: &Tensor) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    Ok(Some(model.forward(pixels)?.mul(&weight)?.sum()?))
}
