//! Results of a BERT.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_models::language::bert::{Bert, Texts};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::sync::Arc;

pub(super) fn outputs(case: &Case, model: &Bert, computed: &mut Computed) -> Result<(), Failure> {
    let Some(texts) = texts(case)? else { return Ok(()) };
    no_grad(|| {
        let states = model.hidden_states(&texts)?;
        for (i, state) in states.iter().enumerate() {
            computed.insert(format!("out/hidden_states.{i}"), state.clone());
            if i > 0 {
                computed.insert(format!("out/layer{}", i - 1), state.clone());
            }
        }
        computed.insert("out/embeddings".to_owned(), states[0].clone());
        let features = model.features(&texts)?;
        for name in ["last_hidden_state", "last_hidden"] {
            computed.insert(format!("out/{name}"), features.clone());
        }
        if model.config().has_pooler {
            computed.insert("out/pooler_output".to_owned(), model.pool(&features)?);
        }
        if model.config().has_language_head {
            computed.insert("out/logits".to_owned(), model.words(&features)?);
        }
        let sentences = model.sentences(&texts)?.l2_normalise()?;
        computed.insert("embed/embeddings".to_owned(), sentences);
        if let Some(value) = loss(case, model)? {
            computed.insert("out/loss".to_owned(), value);
        }
        Ok(())
    })
}

fn texts(case: &Case) -> Result<Option<Texts>, Failure> {
    let Some(ids) = case.ids("in/input_ids")? else { return Ok(None) };
    let of_all = |value| vec![value; ids.len()].into();
    let mask = case.ids("in/attention_mask")?.unwrap_or_else(|| of_all(1));
    let token_types = case.ids("in/token_type_ids")?.unwrap_or_else(|| of_all(0));
    let mask = mask.iter().map(|m| u8::from(*m != 0)).collect();
    Ok(Some(Texts { ids, token_types, mask, batch: case.rows("in/input_ids") }))
}

/// The targets, where -100 takes no part.
fn targets(case: &Case) -> Result<Option<Arc<[u32]>>, Failure> {
    if !case.wants("in/labels") {
        return Ok(None);
    }
    let labels = case.golden.read_i64("in/labels")?;
    Ok(Some(labels.into_iter().map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect()))
}

pub(super) fn loss(case: &Case, model: &Bert) -> Result<Option<Tensor>, Failure> {
    match (texts(case)?, targets(case)?) {
        (Some(texts), Some(targets)) => Ok(Some(model.loss(&texts, &targets)?)),
        _ => Ok(None),
    }
}
