//! Results of a T5.

use super::case::Case;
use super::qformer::mask;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::generate::{Flow, Prompt, generate};
use ocelli_models::language::t5::{Memory, T5};
use ocelli_tensor::{Targets, Tensor, no_grad};

pub(super) fn outputs(case: &Case, model: &T5, computed: &mut Computed) -> Result<(), Failure> {
    let Some(memory) = no_grad(|| memory(case, model))? else { return Ok(()) };
    no_grad(|| {
        for name in ["enc_final", "encoder_last_hidden"] {
            computed.insert(format!("out/{name}"), memory.tokens.clone());
        }
        if let Some(labels) = labels(case)? {
            let logits = model.label_logits(&memory, &labels, None)?;
            computed.insert("out/logits".to_owned(), logits);
            computed.insert("out/loss".to_owned(), model.loss(&memory, &labels)?);
        }
        Ok::<(), Failure>(())
    })?;
    written(case, model, &memory, computed)
}

/// Computes every `gen/*`: answers behind the token that they begin with.
fn written(
    case: &Case,
    model: &T5,
    memory: &Memory,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let (start, pad) = (model.config().start_id, model.config().pad_id);
    let &[batch, tokens, _] = &memory.tokens.shape()[..] else { return Ok(()) };
    // Padding stands behind the text.
    let real = |row: &[u8]| row.iter().filter(|m| **m != 0).count();
    let lens: Vec<usize> = match &memory.mask {
        Some(mask) => mask.chunks(tokens.max(1)).map(real).collect(),
        None => vec![tokens; batch],
    };
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let settings = generation::settings(case, name, 1);
        let mut cache = model.new_cache(&memory.tokens, &lens)?;
        let prompts = vec![Prompt::text(model, &[start])?; batch];
        let go_on = &mut |_, _| Flow::Continue;
        let answers = generate(model, &prompts, &mut cache, &settings, go_on)?;
        let ids = generation::padded(&vec![start; batch], 1, &answers, pad);
        computed.insert(name.clone(), ids);
    }
    Ok(())
}

fn memory(case: &Case, model: &T5) -> Result<Option<Memory>, Failure> {
    let Some(ids) = case.ids("in/input_ids")? else { return Ok(None) };
    let batch = case.rows("in/input_ids");
    let shape = [batch, ids.len() / batch.max(1)];
    let embeddings = model.embed(&ids, &shape)?; // [batch, tokens, width]
    Ok(Some(model.encode(&embeddings, mask(case, "in/attention_mask")?)?))
}

/// The labels, where -100 takes no part.
fn labels(case: &Case) -> Result<Option<Vec<u32>>, Failure> {
    if !case.wants("in/labels") {
        return Ok(None);
    }
    let labels = case.golden.read_i64("in/labels")?;
    Ok(Some(labels.into_iter().map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect()))
}

pub(super) fn loss(case: &Case, model: &T5) -> Result<Option<Tensor>, Failure> {
    match (memory(case, model)?, labels(case)?) {
        (Some(memory), Some(labels)) => Ok(Some(model.loss(&memory, &labels)?)),
        _ => Ok(None),
    }
}
