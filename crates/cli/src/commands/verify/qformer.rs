//! Results of a Q-Former.

use super::Computed;
use super::case::Case;
use super::gradients;
use crate::failure::Failure;
use ocelli_models::Opened;
use ocelli_models::connector::qformer::{Memory, QFormer};
use ocelli_models::language::bert::Texts;
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::sync::Arc;

/// Label smoothing of the original's own loss.
const SMOOTHING: f32 = 0.1;

pub(super) fn outputs(
    case: &Case,
    opened: &Opened,
    model: &QFormer,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(memory) = memory(case)? else { return Ok(()) };
    no_grad(|| {
        for (i, state) in model.hidden_states(&memory)?.into_iter().enumerate() {
            computed.insert(format!("tap/queries_only.hidden{i}"), state.clone());
            computed.insert("out/queries_only".to_owned(), state);
        }
        if let Some(texts) = texts(case, "in/text_ids", "in/text_attention_mask")? {
            computed.insert("out/text_only".to_owned(), model.read(&texts)?);
            computed.insert("out/queries_and_text".to_owned(), model.join(&memory, &texts)?);
        }
        if let Some(texts) = texts(case, "in/lm_decoder_ids", "in/text_attention_mask")? {
            computed.insert("out/lm_logits".to_owned(), model.write(&memory, &texts)?);
        }
        if let Some(value) = loss(case, model)? {
            computed.insert("out/loss".to_owned(), value);
        }
        Ok::<(), Failure>(())
    })?;
    if let Some(value) = language_loss(case, model, &memory)? {
        computed.insert("out/lm_loss".to_owned(), value.detach());
        gradients::put_gradients("grad_lm/", opened, &value.backward()?, computed)?;
    }
    if case.wants("grad/in.image_embeds") {
        let memory = Memory { tokens: memory.tokens.leaf(), ..memory };
        if let Some(value) = weighted(case, model, &memory)?
            && let Some(grad) = value.backward()?.get(&memory.tokens)
        {
            computed.insert("grad/in.image_embeds".to_owned(), grad.detach());
        }
    }
    Ok(())
}

fn memory(case: &Case) -> Result<Option<Memory>, Failure> {
    let Some(tokens) = case.tensor("in/image_embeds")? else { return Ok(None) };
    Ok(Some(Memory { tokens, mask: mask(case, "in/image_attention_mask")? }))
}

/// A mask of ones and zeros, if the case has it.
pub(super) fn mask(case: &Case, name: &str) -> Result<Option<Arc<[u8]>>, Failure> {
    Ok(case.ids(name)?.map(|mask| mask.iter().map(|m| u8::from(*m != 0)).collect()))
}

/// Texts of one segment, if the case has them; without a mask all tokens are real.
pub(super) fn texts(case: &Case, ids: &str, masks: &str) -> Result<Option<Texts>, Failure> {
    let batch = case.rows(ids);
    let Some(ids) = case.ids(ids)? else { return Ok(None) };
    let token_types = vec![0; ids.len()].into();
    let mask = mask(case, masks)?.unwrap_or_else(|| vec![1; ids.len()].into());
    Ok(Some(Texts { ids, token_types, mask, batch }))
}

fn language_loss(case: &Case, model: &QFormer, memory: &Memory) -> Result<Option<Tensor>, Failure> {
    let texts = texts(case, "in/lm_decoder_ids", "in/text_attention_mask")?;
    let (Some(texts), true) = (texts, case.wants("in/lm_labels")) else { return Ok(None) };
    let labels = case.golden.read_i64("in/lm_labels")?;
    let labels: Vec<u32> =
        labels.into_iter().map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect();
    Ok(Some(model.language_loss(memory, &texts, &labels, SMOOTHING)?))
}

/// The sum of what the queries read, each value times a weight of the case.
pub(super) fn loss(case: &Case, model: &QFormer) -> Result<Option<Tensor>, Failure> {
    let Some(memory) = memory(case)? else { return Ok(None) };
    weighted(case, model, &memory)
}

fn weighted(case: &Case, model: &QFormer, memory: &Memory) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    Ok(Some(model.forward(memory)?.mul(&weight)?.sum()?))
}
