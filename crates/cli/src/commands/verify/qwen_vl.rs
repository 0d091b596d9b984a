//! Results of a Qwen-VL and of its adapter.

use super::case::Case;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::connector::position_resampler::PositionResampler;
use ocelli_models::connector::splice::{IMAGE, Spliced};
use ocelli_models::systems::batch::Batch;
use ocelli_models::systems::qwen_vl::QwenVl;
use ocelli_models::systems::talker::Talker;
use ocelli_tensor::{Targets, Tensor, no_grad};

pub(super) fn outputs(case: &Case, model: &QwenVl, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        computed.insert("out/sincos_table".to_owned(), model.resampler().query_positions());
        let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
        computed.insert("tap/visual.resampler".to_owned(), model.read(&pixels)?);
        computed.insert("tap/visual.out".to_owned(), model.image_tokens(&pixels)?);
        let Some(batch) = batch(case, model)? else { return Ok(()) };
        computed.insert("out/logits".to_owned(), batch.logits(model.language())?);
        computed.insert("out/loss".to_owned(), batch.loss(model.language())?);
        Ok::<(), Failure>(())
    })?;
    answer(case, model, computed)
}

/// The id that begins a picture; the one behind it ends it.
fn image_start(case: &Case) -> u32 {
    let visual = case.value("config.json", "visual").unwrap_or_default();
    let start = visual["image_start_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    start.unwrap_or(IMAGE)
}

/// A text with the next pictures of a list, which take the place of all between start and end.
fn spliced(
    case: &Case,
    model: &QwenVl,
    ids: &[u32],
    labels: &[u32],
    pictures: &mut impl Iterator<Item = Tensor>,
) -> Result<Spliced, Failure> {
    let start = image_start(case);
    let (mut short, mut short_labels, mut inside) = (Vec::new(), Vec::new(), false);
    for (i, id) in ids.iter().enumerate() {
        inside &= *id != start + 1;
        if !inside {
            short.push(*id);
            short_labels.push(labels.get(i).copied().unwrap_or(Targets::IGNORED));
        }
        if *id == start {
            inside = true;
            short.push(IMAGE);
            short_labels.push(Targets::IGNORED);
        }
    }
    let places = short.iter().filter(|id| **id == IMAGE).count();
    let pictures: Vec<Tensor> = pictures.take(places).collect();
    Ok(Spliced::new(model.language(), &short, Some(&short_labels), &pictures)?)
}

fn batch(case: &Case, model: &QwenVl) -> Result<Option<Batch>, Failure> {
    let (Some(pixels), Some(ids)) = (case.tensor("in/pixel_values")?, case.ids("in/input_ids")?)
    else {
        return Ok(None);
    };
    let labels = case.golden.read_i64("in/labels")?;
    let visible = case.ids("in/attention_mask")?;
    let tokens = ids.len() / case.rows("in/input_ids").max(1);
    let mut pictures = model.pictures(&pixels)?.into_iter();
    let mut texts = Vec::new();
    for (row, all) in ids.chunks_exact(tokens).enumerate() {
        let at = row * tokens;
        let is_real = |i: &usize| visible.as_ref().is_none_or(|mask| mask[at + i] != 0);
        let len = (0..tokens).take_while(is_real).count();
        let label = |l: &i64| u32::try_from(*l).unwrap_or(Targets::IGNORED);
        let labels: Vec<u32> = labels[at..at + len].iter().map(label).collect();
        texts.push(spliced(case, model, &all[..len], &labels, &mut pictures)?);
    }
    Ok(Some(Batch::new(model.language(), &texts, tokens, case.id("pad_id"))?))
}

/// `gen/ids`: what follows `gen/prompt_ids` with the picture that the case names.
fn answer(case: &Case, model: &QwenVl, computed: &mut Computed) -> Result<(), Failure> {
    let (Some(pixels), Some(ids)) = (case.tensor("in/pixel_values")?, case.ids("gen/prompt_ids")?)
    else {
        return Ok(());
    };
    let prompt = no_grad(|| {
        let shown = case.ids("gen/image_index")?.unwrap_or_else(|| vec![0].into());
        let pictures = model.pictures(&pixels)?;
        let mut shown = shown.iter().filter_map(|i| pictures.get(*i as usize).cloned());
        spliced(case, model, &ids, &[], &mut shown)
    })?;
    let ids = generation::greedy(case, "gen/ids", model.language(), prompt.into(), &[])?;
    computed.insert("gen/ids".to_owned(), ids);
    Ok(())
}

pub(super) fn loss(case: &Case, model: &QwenVl) -> Result<Option<Tensor>, Failure> {
    match batch(case, model)? {
        Some(batch) => Ok(Some(batch.loss(model.language())?)),
        None => Ok(None),
    }
}

pub(super) fn adapter_outputs(
    case: &Case,
    model: &PositionResampler,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(tokens) = case.tensor("in/x")? else { return Ok(()) };
    no_grad(|| {
        computed.insert("out/sincos_table".to_owned(), model.query_positions());
        let positions = model.token_positions(tokens.shape()[1])?;
        computed.insert("out/kv_pos_embed".to_owned(), positions);
        computed.insert("out/y".to_owned(), model.forward(&tokens)?);
        if let Some(loss) = weighted(case, model, &tokens)? {
            computed.insert("out/loss".to_owned(), loss);
        }
        Ok::<(), Failure>(())
    })?;
    let tokens = tokens.leaf();
    if let Some(loss) = weighted(case, model, &tokens)?
        && let Some(grad) = loss.backward()?.get(&tokens)
    {
        computed.insert("grad/in.x".to_owned(), grad.detach());
    }
    Ok(())
}

/// The sum of what is read, each value times a weight of the case.
fn weighted(
    case: &Case,
    model: &PositionResampler,
    tokens: &Tensor,
) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    Ok(Some(model.forward(tokens)?.mul(&weight)?.sum()?))
}

pub(super) fn adapter_loss(
    case: &Case,
    model: &PositionResampler,
) -> Result<Option<Tensor>, Failure> {
    match case.tensor("in/x")? {
        Some(tokens) => weighted(case, model, &tokens),
        None => Ok(None),
    }
}
