//! Results of a Flamingo.

use super::case::Case;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::generate::{Flow, Prompt, Settings, generate};
use ocelli_models::language::causal::{CausalModel, next_token_loss};
use ocelli_models::systems::flamingo::{Documents, Flamingo};
use ocelli_tensor::{Targets, Tensor, no_grad};

pub(super) fn outputs(
    case: &Case,
    model: &Flamingo,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
    no_grad(|| {
        let features = model.features(&pixels)?;
        let media = model.resampler().forward(&features)?;
        computed.insert("tap/features".to_owned(), features.clone());
        computed.insert("tap/vision_tokens".to_owned(), features);
        computed.insert("tap/perceiver_out".to_owned(), media.clone());
        if let Some((documents, labels)) = documents(case, media)? {
            let logits = model.logits(&documents)?;
            computed.insert("out/loss".to_owned(), next_token_loss(&logits, &labels)?);
            computed.insert("out/logits".to_owned(), logits);
        }
        answers(case, model, &pixels, computed)
    })
}

/// The texts `in/input_ids` and their labels.
fn documents(case: &Case, media: Tensor) -> Result<Option<(Documents, Vec<u32>)>, Failure> {
    let Some(ids) = case.ids("in/input_ids")? else { return Ok(None) };
    let mask = case.ids("in/attention_mask")?.unwrap_or_else(|| vec![1; ids.len()].into());
    let label = |l: i64| u32::try_from(l).unwrap_or(Targets::IGNORED);
    let labels = if case.wants("in/labels") {
        case.golden.read_i64("in/labels")?.into_iter().map(label).collect()
    } else {
        vec![Targets::IGNORED; ids.len()]
    };
    let mask = mask.iter().map(|m| u8::from(*m != 0)).collect();
    Ok(Some((Documents { ids: ids.to_vec(), mask, media }, labels)))
}

/// Every `gen/*`: texts that go on from `gen/prompt_ids`, which show the pictures of the first sample.
fn answers(
    case: &Case,
    model: &Flamingo,
    pixels: &Tensor,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(ids) = case.ids("gen/prompt_ids")? else { return Ok(()) };
    let image = model.config().image_token;
    let places: Vec<usize> = (0..ids.len()).filter(|i| ids[*i] == image).collect();
    let seen = model.features(&pixels.narrow(0, 0, 1)?)?; // [1, media, frames, positions, width]
    let shown = (places.iter().take(seen.shape()[1]).enumerate())
        .map(|(i, place)| Ok((*place, seen.narrow(1, i, 1)?.reshape(&seen.shape()[2..])?)))
        .collect::<Result<_, Failure>>()?;
    let prompt = Prompt { shown, ..Prompt::text(model, &ids)? };
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let longest = case.shape(name).last().copied().unwrap_or(0);
        let settings = Settings::greedy(longest.saturating_sub(ids.len()), &[]);
        let (mut cache, prompts) = (model.new_cache(1), std::slice::from_ref(&prompt));
        let go_on = &mut |_, _| Flow::Continue;
        let answers = generate(model, prompts, &mut cache, &settings, go_on)?;
        computed.insert(name.clone(), generation::padded(&ids, ids.len(), &answers, 0));
    }
    Ok(())
}

pub(super) fn loss(case: &Case, model: &Flamingo) -> Result<Option<Tensor>, Failure> {
    let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(None) };
    match documents(case, model.media(&pixels)?)? {
        Some((documents, labels)) => Ok(Some(model.loss(&documents, &labels)?)),
        None => Ok(None),
    }
}
