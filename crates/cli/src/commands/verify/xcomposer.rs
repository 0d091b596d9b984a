//! Results of an InternLM-XComposer.

use super::case::Case;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::connector::splice::{IMAGE, Spliced};
use ocelli_models::generate::Prompt;
use ocelli_models::systems::batch::Batch;
use ocelli_models::systems::talker::Talker;
use ocelli_models::systems::xcomposer::XComposer;
use ocelli_tensor::{Targets, Tensor, no_grad};

/// The ids of the cases' own tokenizer, whose texts are ids with blanks between.
const BOS: u32 = 1;
const EOS: u32 = 2;
/// What the marks of a conversation are there: of the user, of the model, behind what the user says.
const USER: u32 = 40;
const MODEL: u32 = 41;
const USER_END: [u32; 2] = [13, 45];
const MODEL_END: u32 = 46;

pub(super) fn outputs(
    case: &Case,
    model: &XComposer,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
    no_grad(|| {
        computed.insert("tap/ln_vision".to_owned(), model.seen(&pixels)?);
        computed.insert("out/image_tokens".to_owned(), model.image_tokens(&pixels)?);
        let Some(batch) = batch(case, model)? else { return Ok(()) };
        computed.insert("out/logits".to_owned(), batch.logits(model.language())?);
        computed.insert("out/loss".to_owned(), batch.loss(model.language())?);
        let shape = &batch.embeddings.shape()[..2];
        let mask: Vec<f32> = batch.mask.iter().map(|m| f32::from(*m)).collect();
        computed.insert("out/attention_mask".to_owned(), Tensor::from_slice(&mask, shape)?);
        let label = |l: &u32| if *l == Targets::IGNORED { -100.0 } else { *l as f32 };
        let labels: Vec<f32> = batch.labels.iter().map(label).collect();
        computed.insert("out/labels".to_owned(), Tensor::from_slice(&labels, shape)?);
        computed.insert("out/inputs_embeds".to_owned(), batch.embeddings);
        Ok::<(), Failure>(())
    })?;
    answers(case, model, &pixels, computed)
}

/// Ids of a field of the configuration.
fn ids(case: &Case, field: &str) -> Result<Vec<u32>, Failure> {
    let text = case.value("config.json", field).unwrap_or_default();
    encode(text.as_str().unwrap_or_default())
}

fn encode(text: &str) -> Result<Vec<u32>, Failure> {
    let id = |word: &str| {
        word.parse().map_err(|_| {
            Failure::input(format!("config.json: `{word}` is no id of the case's tokenizer"))
        })
    };
    text.split_whitespace().map(id).collect()
}

/// The first question with its picture, up to where the answer begins.
fn first_prompt(case: &Case) -> Result<Vec<u32>, Failure> {
    let (meta, text) = (ids(case, "meta_instruction")?, ids(case, "text")?);
    Ok([&[BOS][..], &meta, &[USER, IMAGE], &text, &USER_END, &[MODEL]].concat())
}

/// The question with each picture and its answer, of which the tokens behind the question are learned.
fn batch(case: &Case, model: &XComposer) -> Result<Option<Batch>, Failure> {
    let answers = case.value("config.json", "answers").unwrap_or_default();
    let (Some(answers), Some(pixels)) = (answers.as_array(), case.tensor("in/pixel_values")?)
    else {
        return Ok(None);
    };
    let mut texts = Vec::new();
    for (answer, picture) in answers.iter().zip(model.pictures(&pixels)?) {
        let mut ids = first_prompt(case)?;
        let mut labels = vec![Targets::IGNORED; ids.len()];
        let answer = encode(answer.as_str().unwrap_or_default())?;
        labels.extend_from_slice(&answer);
        ids.extend(answer);
        texts.push(Spliced::new(model.language(), &ids, Some(&labels), &[picture])?);
    }
    Ok(Some(Batch::new(model.language(), &texts, 0, None)?))
}

/// `gen/*` and `turn2/*`: the answer about the first picture, and what is read of a second question.
fn answers(
    case: &Case,
    model: &XComposer,
    pixels: &Tensor,
    computed: &mut Computed,
) -> Result<(), Failure> {
    if !case.wants("gen/ids") {
        return Ok(());
    }
    let picture = no_grad(|| model.pictures(&pixels.narrow(0, 0, 1)?))?;
    let context = |ids: &[u32]| -> Result<(Tensor, Prompt), Failure> {
        let spliced = Spliced::new(model.language(), ids, None, &picture)?;
        let [tokens, width] = [0, 1].map(|axis| spliced.embeddings.shape()[axis]);
        Ok((spliced.embeddings.reshape(&[1, tokens, width])?, spliced.into()))
    };
    let (embeddings, prompt) = no_grad(|| context(&first_prompt(case)?))?;
    computed.insert("gen/context_embeds".to_owned(), embeddings);
    let eos = [EOS, USER_END[1], MODEL_END];
    let answer = generation::greedy(case, "gen/ids", model.language(), prompt, &eos)?;
    let said: Vec<u32> = answer.values().iter().map(|id| *id as u32).collect();
    computed.insert("gen/ids".to_owned(), answer);
    let question = ids(case, "text")?;
    let past = [&[BOS, USER, IMAGE][..], &question, &[MODEL, BOS], &said].concat();
    let now = [&[USER][..], &ids(case, "second_turn_text")?, &USER_END, &[MODEL]].concat();
    let (embeddings, _) = no_grad(|| context(&[past, now].concat()))?;
    let language = model.language();
    let logits = no_grad(|| language.logits(&language.features(&embeddings, None)?))?;
    computed.insert("turn2/logits".to_owned(), logits);
    computed.insert("turn2/context_embeds".to_owned(), embeddings);
    Ok(())
}

pub(super) fn loss(case: &Case, model: &XComposer) -> Result<Option<Tensor>, Failure> {
    match batch(case, model)? {
        Some(batch) => Ok(Some(batch.loss(model.language())?)),
        None => Ok(None),
    }
}
