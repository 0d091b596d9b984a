//! Results of a language model that writes from left to right.

use super::case::Case;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::language::causal::{CausalModel, next_token_loss};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::sync::Arc;

pub(super) fn outputs(
    case: &Case,
    model: &dyn CausalModel,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| {
        let Some(texts) = Texts::read(case, model)? else { return Ok(()) };
        let features = model.features(&texts.embeddings, Some(&texts.mask))?;
        let logits = model.logits(&features)?;
        if let Some(labels) = labels(case)? {
            computed.insert("out/loss".to_owned(), next_token_loss(&logits, &labels)?);
        }
        computed.insert("out/logits".to_owned(), logits);
        for name in ["final_norm", "hidden_states_last"] {
            computed.insert(format!("out/{name}"), features.clone());
        }
        Ok::<(), Failure>(())
    })?;
    generation::outputs(case, model, &|batch| model.new_cache(batch), computed)?;
    generation::step_logits(case, model, model.new_cache(1), computed)
}

struct Texts {
    /// `[batch, tokens, width]`.
    embeddings: Tensor,
    mask: Arc<[u8]>,
}

impl Texts {
    fn read(case: &Case, model: &dyn CausalModel) -> Result<Option<Self>, Failure> {
        let Some(ids) = case.ids("in/input_ids")? else { return Ok(None) };
        let mask = case.ids("in/attention_mask")?.unwrap_or_else(|| vec![1; ids.len()].into());
        let batch = case.rows("in/input_ids").max(1);
        let embeddings = model.embed(&ids)?;
        let width = embeddings.shape().last_axis();
        let embeddings = embeddings.reshape(&[batch, ids.len() / batch, width])?;
        let mask = mask.iter().map(|m| u8::from(*m != 0)).collect();
        Ok(Some(Self { embeddings, mask }))
    }
}

/// The targets, where -100 takes no part.
fn labels(case: &Case) -> Result<Option<Vec<u32>>, Failure> {
    if !case.wants("in/labels") {
        return Ok(None);
    }
    let labels = case.golden.read_i64("in/labels")?;
    Ok(Some(labels.into_iter().map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect()))
}

pub(super) fn loss(case: &Case, model: &dyn CausalModel) -> Result<Option<Tensor>, Failure> {
    match (Texts::read(case, model)?, labels(case)?) {
        (Some(texts), Some(labels)) => {
            Ok(Some(model.loss(&texts.embeddings, Some(&texts.mask), &labels)?))
        }
        _ => Ok(None),
    }
}
