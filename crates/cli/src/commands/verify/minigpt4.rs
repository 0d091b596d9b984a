//! Results of a MiniGPT-4 or MiniGPT-v2.

use super::case::Case;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::connector::splice::{IMAGE, Spliced};
use ocelli_models::language::causal::next_token_loss;
use ocelli_models::systems::batch::Batch;
use ocelli_models::systems::minigpt4::MiniGpt4;
use ocelli_models::systems::talker::Talker;
use ocelli_tensor::{Targets, Tensor, no_grad};
use serde_json::Value;

/// Where a prompt shows its picture.
const MARK: &str = "<ImageHere>";
/// The ids of the cases' own tokenizer, whose texts are ids with blanks between.
const BOS: u32 = 1;
const EOS: u32 = 2;

pub(super) fn outputs(
    case: &Case,
    model: &MiniGpt4,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| {
        let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
        computed.insert("tap/llama_proj".to_owned(), model.image_tokens(&pixels)?);
        let Some(batch) = batch(case, model)? else { return Ok(()) };
        let logits = batch.logits(model.language())?;
        computed.insert("out/loss".to_owned(), next_token_loss(&logits, &batch.labels)?);
        computed.insert("out/loss_per_sample".to_owned(), loss_per_sample(&logits, &batch)?);
        let shape = &batch.embeddings.shape()[..2];
        let mask: Vec<f32> = batch.mask.iter().map(|m| f32::from(*m)).collect();
        computed.insert("out/attention_mask".to_owned(), Tensor::from_slice(&mask, shape)?);
        let target = |l: &u32| if *l == Targets::IGNORED { -100.0 } else { *l as f32 };
        let targets: Vec<f32> = batch.labels.iter().map(target).collect();
        computed.insert("out/targets".to_owned(), Tensor::from_slice(&targets, shape)?);
        computed.insert("out/inputs_embeds".to_owned(), batch.embeddings);
        computed.insert("out/logits".to_owned(), logits);
        Ok::<(), Failure>(())
    })?;
    answer(case, model, computed)
}

/// The sum of the losses of each sample over the number of its next tokens, padding included.
fn loss_per_sample(logits: &Tensor, batch: &Batch) -> Result<Tensor, Failure> {
    let &[samples, tokens, _] = &logits.shape()[..] else { return Ok(logits.clone()) };
    let mut losses = Vec::with_capacity(samples);
    for i in 0..samples {
        let labels = &batch.labels[i * tokens..(i + 1) * tokens];
        let learned = labels[1..].iter().filter(|l| **l != Targets::IGNORED).count();
        let mean = next_token_loss(&logits.narrow(0, i, 1)?, labels)?.values()[0];
        losses.push(mean * learned as f32 / (tokens - 1) as f32);
    }
    Ok(Tensor::from_slice(&losses, &[samples])?)
}

/// What `gen/ids` is of: the prompt for the first picture.
fn answer(case: &Case, model: &MiniGpt4, computed: &mut Computed) -> Result<(), Failure> {
    let prompt = case.value("config.json", "generation_prompt");
    let (Some(prompt), Some(pixels)) = (prompt, case.tensor("in/pixel_values")?) else {
        return Ok(());
    };
    let ids: Vec<u32> =
        [BOS].into_iter().chain(encode(prompt.as_str().unwrap_or_default())?).collect();
    let spliced = no_grad(|| {
        let picture = model.pictures(&pixels.narrow(0, 0, 1)?)?;
        Spliced::new(model.language(), &ids, None, &picture)
    })?;
    let &[tokens, width] = &spliced.embeddings.shape()[..] else { return Ok(()) };
    let context = spliced.embeddings.reshape(&[1, tokens, width])?;
    computed.insert("gen/context_embeds".to_owned(), context);
    let ids = generation::greedy(case, "gen/ids", model.language(), spliced.into(), &[EOS])?;
    computed.insert("gen/ids".to_owned(), ids);
    Ok(())
}

/// Ids of a text; [`IMAGE`] for a picture.
fn encode(text: &str) -> Result<Vec<u32>, Failure> {
    let id = |word: &str| match word {
        MARK => Ok(IMAGE),
        "<s>" => Ok(BOS),
        word => word.parse().map_err(|_| {
            Failure::input(format!("config.json: `{word}` is no id of the case's tokenizer"))
        }),
    };
    text.replace(MARK, &format!(" {MARK} ")).split_whitespace().map(id).collect()
}

/// The samples of the configuration with the pictures of the case.
fn batch(case: &Case, model: &MiniGpt4) -> Result<Option<Batch>, Failure> {
    let samples = case.value("config.json", "samples");
    let (Some(samples), Some(pixels)) = (samples, case.tensor("in/pixel_values")?) else {
        return Ok(None);
    };
    let config = |field: &str| case.value("config.json", field).unwrap_or_default();
    let end = config("end_sym");
    let end = end.as_str().unwrap_or_default();
    let longest = config("max_txt_len").as_u64().map_or(usize::MAX, |n| n as usize);
    let template = config("prompt_template");
    let pad = model.config().text.vocab as u32 - 1;
    let list = |field: &str| -> Vec<String> {
        let list = samples[field].as_array().cloned().unwrap_or_default();
        list.iter().map(|t| t.as_str().unwrap_or_default().to_owned()).collect()
    };
    let pictures = model.pictures(&pixels)?;
    let rows = list("answer").len().max(list("conv_a").len());
    let mut texts = Vec::new();
    let (mut next, mut longest_prompt, mut longest_answer) = (0, 0, 0);
    for row in 0..rows {
        let turns = turns(&samples, &list, row);
        let mut ids = vec![BOS];
        let mut labels = vec![Targets::IGNORED];
        let mut rest = Vec::new();
        for (turn, (question, answer)) in turns.iter().enumerate() {
            let question = match (question, template.as_str()) {
                // The first stage shows the picture alone.
                (None, _) => MARK.to_owned(),
                (Some(question), Some(template)) => template.replace("{}", question),
                (Some(question), None) => question.clone(),
            };
            let question = encode(&question)?;
            if turn == 0 {
                ids.extend_from_slice(&question);
            } else {
                rest.push((BOS, false));
                rest.extend(question.into_iter().map(|id| (id, false)));
            }
            if let Some(answer) = answer {
                rest.extend(encode(&format!("{answer}{end}"))?.into_iter().map(|id| (id, true)));
            }
        }
        rest.truncate(longest);
        let answer = rest.len();
        labels.resize(ids.len(), Targets::IGNORED);
        for (id, is_learned) in rest {
            ids.push(id);
            // The padding token is a word like any other, and masked where it is one.
            labels.push(if is_learned && id != pad { id } else { Targets::IGNORED });
        }
        let shown = ids.iter().filter(|id| **id == IMAGE).count();
        // Each sample has a list of pictures, of which the first ones are shown.
        let (first, of_sample) = (next, (pictures.len() / rows).max(shown));
        next += of_sample;
        let images = pictures.get(first..first + shown).unwrap_or_default();
        let text = Spliced::new(model.language(), &ids, Some(&labels), images)?;
        longest_prompt = longest_prompt.max(text.labels.len() - answer);
        longest_answer = longest_answer.max(answer);
        texts.push(text);
    }
    let tokens = longest_prompt + longest_answer;
    Ok(Some(Batch::new(model.language(), &texts, tokens, Some(pad))?))
}

/// Questions and answers of a sample.
fn turns(
    samples: &Value,
    list: &dyn Fn(&str) -> Vec<String>,
    row: usize,
) -> Vec<(Option<String>, Option<String>)> {
    if let Some(questions) = list("conv_q").get(row) {
        let answers = list("conv_a");
        let mark = samples["connect_sym"][row].as_str().unwrap_or("|").to_owned();
        let parts = |text: &str| -> Vec<String> {
            text.split(&mark[..]).map(|part| part.trim().to_owned()).collect()
        };
        let mut answers = parts(&answers[row]).into_iter();
        return parts(questions).into_iter().map(|q| (Some(q), answers.next())).collect();
    }
    vec![(list("instruction_input").get(row).cloned(), list("answer").get(row).cloned())]
}

pub(super) fn loss(case: &Case, model: &MiniGpt4) -> Result<Option<Tensor>, Failure> {
    match batch(case, model)? {
        Some(batch) => Ok(Some(batch.loss(model.language())?)),
        None => Ok(None),
    }
}
