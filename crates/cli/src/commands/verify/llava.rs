//! Results of a LLaVA.

use super::case::Case;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::connector::splice::{IMAGE, Spliced};
use ocelli_models::generate::{Flow, Prompt, generate};
use ocelli_models::language::causal::next_token_loss;
use ocelli_models::systems::llava::{Batch, Llava, collapse};
use ocelli_models::systems::talker::Talker;
use ocelli_tensor::{Targets, Tensor, no_grad};
use regex::Regex;

pub(super) fn outputs(case: &Case, model: &Llava, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        let Some(pixels) = pixels(case)? else { return Ok(()) };
        let seen = model.seen(&pixels)?;
        let projected = model.projector().forward(&seen)?;
        let first = model.projector().first(&seen)?;
        computed.insert("out/projector_linear_1".to_owned(), first);
        computed.insert("out/projector".to_owned(), projected.clone());
        computed.insert("out/projected".to_owned(), projected);
        let Some(texts) = texts(case, model)? else { return Ok(()) };
        let batch = Llava::batch(&texts)?;
        let logits = model.logits(&batch)?;
        computed.insert("out/loss".to_owned(), next_token_loss(&logits, &batch.labels)?);
        computed.insert("out/logits".to_owned(), logits);
        computed.insert("out/labels".to_owned(), labels_tensor(&batch)?);
        let mask: Vec<f32> = batch.mask.iter().map(|m| f32::from(*m)).collect();
        let shape = &batch.embeddings.shape()[..2];
        computed.insert("out/attention_mask".to_owned(), Tensor::from_slice(&mask, shape)?);
        computed.insert("out/inputs_embeds".to_owned(), batch.embeddings);
        truncated(case, model, &texts, computed)
    })?;
    answers(case, model, computed)
}

/// `trunc36_*`: the same where texts end after 36 tokens.
fn truncated(
    case: &Case,
    model: &Llava,
    texts: &[Spliced],
    computed: &mut Computed,
) -> Result<(), Failure> {
    let name = Regex::new(r"^out/trunc(\d+)_loss$").expect("the pattern is fixed");
    for expected in case.expected() {
        let Some(tokens) = name.captures(&expected).and_then(|c| c[1].parse().ok()) else {
            continue;
        };
        let texts: Vec<Spliced> =
            texts.iter().map(|t| t.clone().truncate(tokens)).collect::<Result<_, _>>()?;
        let batch = Llava::batch(&texts)?;
        computed.insert(format!("out/trunc{tokens}_labels"), labels_tensor(&batch)?);
        computed.insert(expected, model.loss(&batch)?);
    }
    Ok(())
}

fn labels_tensor(batch: &Batch) -> Result<Tensor, Failure> {
    let value = |l: &u32| if *l == Targets::IGNORED { -100.0 } else { *l as f32 };
    let labels: Vec<f32> = batch.labels.iter().map(value).collect();
    Ok(Tensor::from_slice(&labels, &batch.embeddings.shape()[..2])?)
}

fn pixels(case: &Case) -> Result<Option<Tensor>, Failure> {
    Ok(case.tensor("in/pixel_values")?.or(case.tensor("in/images")?))
}

/// The texts `in/input_ids` with their pictures. Those of transformers are as long as they are stored,
/// padding included; the original code drops the padding first.
fn texts(case: &Case, model: &Llava) -> Result<Option<Vec<Spliced>>, Failure> {
    if !case.wants("in/input_ids") {
        return Ok(None);
    }
    let Some(pixels) = pixels(case)? else { return Ok(None) };
    let ids = case.golden.read_i64("in/input_ids")?;
    let labels = if case.wants("in/labels") {
        case.golden.read_i64("in/labels")?
    } else {
        vec![-100; ids.len()]
    };
    let is_original = ids.iter().any(|id| *id < 0);
    let mask = case.ids("in/attention_mask")?.filter(|_| is_original);
    let width = ids.len() / case.rows("in/input_ids").max(1);
    let label = |l: i64| u32::try_from(l).unwrap_or(Targets::IGNORED);
    let mut pictures = model.pictures(&pixels)?.into_iter();
    let mut texts = Vec::new();
    for row in 0..case.rows("in/input_ids") {
        let at = row * width..(row + 1) * width;
        let real: Vec<usize> =
            at.filter(|i| mask.as_ref().is_none_or(|mask| mask[*i] != 0)).collect();
        let ids: Vec<u32> = real.iter().map(|i| id(ids[*i])).collect();
        let labels: Vec<u32> = real.iter().map(|i| label(labels[*i])).collect();
        texts.push(spliced(case, model, &ids, &labels, &mut pictures)?);
        if is_original && !ids.contains(&IMAGE) {
            pictures.next(); // A text without a picture still has one in the list.
        }
    }
    Ok(Some(texts))
}

/// The original code writes -200 for a picture.
fn id(id: i64) -> u32 {
    u32::try_from(id).unwrap_or(IMAGE)
}

/// A text with the next pictures of the list.
fn spliced(
    case: &Case,
    model: &Llava,
    ids: &[u32],
    labels: &[u32],
    pictures: &mut impl Iterator<Item = Tensor>,
) -> Result<Spliced, Failure> {
    let token = case.id("image_token_index").or_else(|| case.id("image_token_id"));
    let [ids, labels] = match token {
        Some(token) => collapse(ids, labels, token, model.config().image_tokens()),
        None => [ids.to_vec(), labels.to_vec()],
    };
    let places = ids.iter().filter(|id| **id == IMAGE).count();
    let images: Vec<Tensor> = pictures.take(places).collect();
    Ok(Spliced::new(model.language(), &ids, Some(&labels), &images)?)
}

/// Every `gen/*`.
fn answers(case: &Case, model: &Llava, computed: &mut Computed) -> Result<(), Failure> {
    let (Some(stored), Some(pixels)) = (generation::Stored::read(case)?, pixels(case)?) else {
        return Ok(());
    };
    let prompts: Vec<Prompt> = no_grad(|| {
        let mut pictures = model.pictures(&pixels)?.into_iter();
        let prompt = |ids: &Vec<u32>| Ok(spliced(case, model, ids, &[], &mut pictures)?.into());
        stored.rows.iter().map(prompt).collect::<Result<_, Failure>>()
    })?;
    let language = model.language();
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let settings = generation::settings(case, name, stored.width);
        let mut cache = language.new_cache(prompts.len());
        let go_on = &mut |_, _| Flow::Continue;
        let answers = generate(language, &prompts, &mut cache, &settings, go_on)?;
        let eos = generation::eos(case);
        let pad = case.id("pad_token_id").or_else(|| eos.first().copied()).unwrap_or(0);
        let all = generation::padded(&stored.ids, stored.width, &answers, pad);
        computed.insert(name.clone(), all);
    }
    Ok(())
}

pub(super) fn loss(case: &Case, model: &Llava) -> Result<Option<Tensor>, Failure> {
    match texts(case, model)? {
        Some(texts) => Ok(Some(model.loss(&Llava::batch(&texts)?)?)),
        None => Ok(None),
    }
}
