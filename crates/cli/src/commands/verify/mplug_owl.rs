//! Results of an mPLUG-Owl and of its abstractor.

use super::case::Case;
use super::{Computed, generation, qformer};
use crate::failure::Failure;
use ocelli_models::connector::abstractor::Abstractor;
use ocelli_models::connector::qformer::Memory;
use ocelli_models::connector::splice::Spliced;
use ocelli_models::generate::Prompt;
use ocelli_models::systems::batch::Batch;
use ocelli_models::systems::llava::collapse;
use ocelli_models::systems::mplug_owl::MplugOwl;
use ocelli_models::systems::talker::Talker;
use ocelli_tensor::{Targets, Tensor, no_grad};

/// Stands for each token of a picture; the cases write a negative number.
const MEDIA: u32 = u32::MAX - 1;
/// Ends a text, and what is behind it.
const EOS: u32 = 2;
const PAD: u32 = 0;

pub(super) fn outputs(
    case: &Case,
    model: &MplugOwl,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| {
        let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
        computed.insert("tap/vision.last_hidden".to_owned(), model.seen(&pixels)?);
        computed.insert("tap/abstractor.out".to_owned(), model.image_tokens(&pixels)?);
        let Some(batch) = batch(case, model)? else { return Ok(()) };
        computed.insert("out/logits".to_owned(), batch.logits(model.language())?);
        computed.insert("out/loss".to_owned(), batch.loss(model.language())?);
        let label = |l: &u32| if *l == Targets::IGNORED { -100.0 } else { *l as f32 };
        let labels: Vec<f32> = batch.labels.iter().map(label).collect();
        let shape = &batch.embeddings.shape()[..2];
        computed.insert("out/labels".to_owned(), Tensor::from_slice(&labels, shape)?);
        computed.insert("out/inputs_embeds".to_owned(), batch.embeddings);
        Ok::<(), Failure>(())
    })?;
    answer(case, model, computed)
}

/// Ids as stored, with [`MEDIA`] where they are negative.
fn ids(case: &Case, name: &str) -> Result<Vec<u32>, Failure> {
    let stored = case.golden.read_i64(name)?;
    Ok(stored.into_iter().map(|id| u32::try_from(id).unwrap_or(MEDIA)).collect())
}

/// A text with the next pictures of a list.
fn spliced(
    model: &MplugOwl,
    ids: &[u32],
    labels: &[u32],
    pictures: &mut impl Iterator<Item = Tensor>,
) -> Result<Spliced, Failure> {
    let tokens = model.config().abstractor.image_tokens();
    let [ids, labels] = collapse(ids, labels, MEDIA, tokens);
    let places = ids.iter().filter(|id| **id > MEDIA).count();
    let pictures: Vec<Tensor> = pictures.take(places).collect();
    Ok(Spliced::new(model.language(), &ids, Some(&labels), &pictures)?)
}

/// The texts of the case. A token is learned where all three masks of the one before it say so.
fn batch(case: &Case, model: &MplugOwl) -> Result<Option<Batch>, Failure> {
    let (Some(pixels), true) = (case.tensor("in/pixel_values")?, case.wants("in/input_ids")) else {
        return Ok(None);
    };
    let (ids, rows) = (ids(case, "in/input_ids")?, case.rows("in/input_ids").max(1));
    let tokens = ids.len() / rows;
    let masks = ["in/non_padding_mask", "in/non_media_mask", "in/prompt_mask"];
    let masks = masks.map(|name| case.ids(name));
    let is_learned = |row: usize, at: usize| -> Result<bool, Failure> {
        for mask in &masks {
            let Ok(Some(mask)) = mask else { return Ok(false) };
            if mask[row * (tokens - 1) + at - 1] == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let visible = case.ids("in/attention_mask")?;
    let mut pictures = model.pictures(&pixels)?.into_iter();
    let mut texts = Vec::with_capacity(rows);
    for (row, all) in ids.chunks_exact(tokens).enumerate() {
        let real = |at: &usize| visible.as_ref().is_none_or(|m| m[row * tokens + at] != 0);
        let len = (0..tokens).take_while(real).count();
        let mut labels = Vec::with_capacity(len);
        for (at, id) in all[..len].iter().enumerate() {
            // The first token has none before it, and is no target of anything.
            let learns = at == 0 || is_learned(row, at)?;
            labels.push(if learns { *id } else { Targets::IGNORED });
        }
        texts.push(spliced(model, &all[..len], &labels, &mut pictures)?);
    }
    Ok(Some(Batch::new(model.language(), &texts, tokens, Some(PAD))?))
}

/// `gen/ids`: what follows `gen/input_ids` with the pictures that the case names.
fn answer(case: &Case, model: &MplugOwl, computed: &mut Computed) -> Result<(), Failure> {
    let (Some(pixels), true) = (case.tensor("in/pixel_values")?, case.wants("gen/input_ids"))
    else {
        return Ok(());
    };
    let prompt: Prompt = no_grad(|| {
        let pictures = model.pictures(&pixels)?;
        let shown = case.ids("gen/image_indices")?.unwrap_or_else(|| vec![0].into());
        let mut shown = shown.iter().filter_map(|i| pictures.get(*i as usize).cloned());
        Ok::<_, Failure>(spliced(model, &ids(case, "gen/input_ids")?, &[], &mut shown)?.into())
    })?;
    let ids = generation::greedy(case, "gen/ids", model.language(), prompt, &[EOS])?;
    computed.insert("gen/ids".to_owned(), ids);
    Ok(())
}

pub(super) fn loss(case: &Case, model: &MplugOwl) -> Result<Option<Tensor>, Failure> {
    match batch(case, model)? {
        Some(batch) => Ok(Some(batch.loss(model.language())?)),
        None => Ok(None),
    }
}

pub(super) fn abstractor_outputs(
    case: &Case,
    model: &Abstractor,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some((queries, memory)) = inputs(case)? else { return Ok(()) };
    no_grad(|| {
        let states = model.states(&queries, &memory)?;
        for (i, state) in states.iter().enumerate() {
            computed.insert(format!("tap/layer{i}"), state.clone());
        }
        if let Some(last) = states.last() {
            computed.insert("out/y".to_owned(), model.shown(last)?);
            let first = last.select_tokens(&vec![0; last.shape()[0]])?;
            computed.insert("out/pooled".to_owned(), first);
        }
        if let Some(loss) = weighted(case, model, &queries, &memory)? {
            computed.insert("out/loss".to_owned(), loss);
        }
        Ok::<(), Failure>(())
    })?;
    let queries = queries.leaf();
    let memory = Memory { tokens: memory.tokens.leaf(), ..memory };
    let Some(loss) = weighted(case, model, &queries, &memory)? else { return Ok(()) };
    let grads = loss.backward()?;
    for (name, input) in [("in.query_tokens", &queries), ("in.x", &memory.tokens)] {
        if let Some(grad) = grads.get(input) {
            computed.insert(format!("grad/{name}"), grad.detach());
        }
    }
    Ok(())
}

/// The queries `[queries, width]` and the image tokens of a case.
fn inputs(case: &Case) -> Result<Option<(Tensor, Memory)>, Failure> {
    let (Some(queries), Some(tokens)) = (case.tensor("in/query_tokens")?, case.tensor("in/x")?)
    else {
        return Ok(None);
    };
    let shape = queries.shape();
    let queries = queries.reshape(&[shape.rows(), shape.last_axis()])?;
    Ok(Some((queries, Memory { tokens, mask: qformer::mask(case, "in/attention_mask")? })))
}

/// The sum of what is shown, each value times a weight of the case.
fn weighted(
    case: &Case,
    model: &Abstractor,
    queries: &Tensor,
    memory: &Memory,
) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    Ok(Some(model.forward(queries, memory)?.mul(&weight)?.sum()?))
}

pub(super) fn abstractor_loss(case: &Case, model: &Abstractor) -> Result<Option<Tensor>, Failure> {
    match inputs(case)? {
        Some((queries, memory)) => weighted(case, model, &queries, &memory),
        None => Ok(None),
    }
}
