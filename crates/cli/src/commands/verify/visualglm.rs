//! Results of a VisualGLM, of what sees in it, and of a `ChatGLM`.

use super::case::Case;
use super::{Computed, generation, qformer};
use crate::failure::Failure;
use ocelli_models::connector::splice::{IMAGE, Spliced};
use ocelli_models::generate::Prompt;
use ocelli_models::language::causal::{CausalModel, next_token_loss};
use ocelli_models::language::chatglm::{Asked, ChatGlm};
use ocelli_models::systems::batch::Batch;
use ocelli_models::systems::talker::Talker;
use ocelli_models::systems::visualglm::{ImageEncoder, VisualGlm};
use ocelli_tensor::{Targets, Tensor, no_grad};

pub(super) fn outputs(
    case: &Case,
    model: &VisualGlm,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| {
        if let Some(pixels) = case.tensor("in/pixel_values")? {
            computed.insert("tap/vit_ln_vision".to_owned(), model.eyes().seen(&pixels)?);
            computed.insert("tap/qformer".to_owned(), model.eyes().read(&pixels)?);
            computed.insert("tap/image_tokens".to_owned(), model.eyes().forward(&pixels)?);
        }
        of_texts(case, model.chatglm(), texts(case, model)?, computed)
    })?;
    let (Some(pixels), Some(ids)) = (case.tensor("in/pixel_values")?, case.ids("gen/prompt_ids")?)
    else {
        return Ok(());
    };
    let prompt: Prompt = no_grad(|| {
        let mut pictures = model.pictures(&pixels.narrow(0, 0, 1)?)?.into_iter();
        Ok::<_, Failure>(spliced(case, model, &ids, &[], &mut pictures)?.into())
    })?;
    for name in ["gen/ids", "gen/cached_ids"] {
        let eos: Vec<u32> = case.id("eos_token_id").into_iter().collect();
        let ids = generation::greedy(case, name, model.language(), prompt.clone(), &eos)?;
        computed.insert(name.to_owned(), ids);
    }
    Ok(())
}

/// A text with its picture, which stands behind the first tokens in place of as many others.
fn spliced(
    case: &Case,
    model: &VisualGlm,
    ids: &[u32],
    labels: &[u32],
    pictures: &mut impl Iterator<Item = Tensor>,
) -> Result<Spliced, Failure> {
    let number = |field: &str| {
        let value = case.value("config.json", field).and_then(|v| v.as_u64());
        value.map_or(0, |n| n as usize)
    };
    let (before, length) = (number("pre_image_length"), number("image_length"));
    let with_place = |all: &[u32], place: u32| -> Vec<u32> {
        let behind = all.iter().skip(before + length);
        all.iter().take(before).chain([&place]).chain(behind).copied().collect()
    };
    let ids = with_place(ids, IMAGE);
    let mut labels = with_place(labels, Targets::IGNORED);
    labels.resize(ids.len(), Targets::IGNORED);
    let pictures: Vec<Tensor> = pictures.take(1).collect();
    Ok(Spliced::new(model.language(), &ids, Some(&labels), &pictures)?)
}

/// Ids and labels of a text.
type Row = (Vec<u32>, Vec<u32>);

/// Each text without what is behind it.
fn rows(case: &Case) -> Result<Option<Vec<Row>>, Failure> {
    let Some(ids) = case.ids("in/input_ids")? else { return Ok(None) };
    let labels = case.golden.read_i64("in/labels")?;
    let Some(mask) = qformer::mask(case, "in/attention_mask")? else { return Ok(None) };
    let tokens = ids.len() / case.rows("in/input_ids").max(1);
    let label = |l: &i64| u32::try_from(*l).unwrap_or(Targets::IGNORED);
    let row = |at: usize| {
        let len = mask[at..at + tokens].iter().filter(|m| **m != 0).count();
        let labels = labels[at..at + len].iter().map(label).collect();
        (ids[at..at + len].to_vec(), labels)
    };
    Ok(Some((0..ids.len()).step_by(tokens.max(1)).map(row).collect()))
}

/// Texts as a `ChatGLM` reads them, and where their answers begin.
type Texts = Option<(Batch, Vec<Asked>)>;

/// Texts of the case side by side; the start of the answer and its mask tell where it begins.
fn side_by_side(
    case: &Case,
    model: &ChatGlm,
    rows: &[Row],
    texts: &[Spliced],
) -> Result<Texts, Failure> {
    let [mask, start] = model.config().answer_ids;
    let asked = rows.iter().map(|(ids, _)| {
        let at = |token: u32| ids.iter().position(|id| *id == token);
        Some(Asked { tokens: at(start)?, mask: at(mask)? })
    });
    let asked: Option<Vec<Asked>> = asked.collect();
    let no_start = || Failure::input("in/input_ids: a text has no start of an answer");
    let asked = asked.ok_or_else(no_start)?;
    Ok(Some((Batch::new(model, texts, 0, case.id("pad_token_id"))?, asked)))
}

fn texts(case: &Case, model: &VisualGlm) -> Result<Texts, Failure> {
    let (Some(rows), Some(pixels)) = (rows(case)?, case.tensor("in/pixel_values")?) else {
        return Ok(None);
    };
    let mut pictures = model.pictures(&pixels)?.into_iter();
    let texts: Vec<Spliced> = rows
        .iter()
        .map(|(ids, labels)| spliced(case, model, ids, labels, &mut pictures))
        .collect::<Result<_, _>>()?;
    side_by_side(case, model.chatglm(), &rows, &texts)
}

fn plain_texts(case: &Case, model: &ChatGlm) -> Result<Texts, Failure> {
    let Some(rows) = rows(case)? else { return Ok(None) };
    let texts: Vec<Spliced> = rows
        .iter()
        .map(|(ids, labels)| Spliced::new(model, ids, Some(labels), &[]))
        .collect::<Result<_, _>>()?;
    side_by_side(case, model, &rows, &texts)
}

fn logits((batch, asked): &(Batch, Vec<Asked>), model: &ChatGlm) -> Result<Tensor, Failure> {
    let features = model.features_of(&batch.embeddings, Some(&batch.mask), asked)?;
    Ok(model.logits(&features)?)
}

fn of_texts(
    case: &Case,
    model: &ChatGlm,
    texts: Texts,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let frequencies = model.frequencies();
    let frequencies = Tensor::from_slice(frequencies, &[frequencies.len()])?;
    computed.insert("out/inv_freq".to_owned(), frequencies);
    let Some(texts) = texts else { return Ok(()) };
    let logits = logits(&texts, model)?;
    computed.insert("out/loss".to_owned(), next_token_loss(&logits, &texts.0.labels)?);
    let tokens = logits.shape()[1];
    computed.insert("out/logits".to_owned(), logits);
    let positions = ChatGlm::positions(&texts.1, tokens);
    let positions: Vec<f32> = positions.iter().map(|p| *p as f32).collect();
    let shape = [texts.1.len(), 2, tokens];
    if case.wants("out/position_ids") {
        let positions = Tensor::from_slice(&positions, &shape)?;
        computed.insert("out/position_ids".to_owned(), positions);
    }
    Ok(())
}

pub(super) fn loss(case: &Case, model: &VisualGlm) -> Result<Option<Tensor>, Failure> {
    loss_of(texts(case, model)?, model.chatglm())
}

fn loss_of(texts: Texts, model: &ChatGlm) -> Result<Option<Tensor>, Failure> {
    match texts {
        Some(texts) => Ok(Some(next_token_loss(&logits(&texts, model)?, &texts.0.labels)?)),
        None => Ok(None),
    }
}

pub(super) fn chatglm_outputs(
    case: &Case,
    model: &ChatGlm,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| of_texts(case, model, plain_texts(case, model)?, computed))
}

pub(super) fn chatglm_loss(case: &Case, model: &ChatGlm) -> Result<Option<Tensor>, Failure> {
    loss_of(plain_texts(case, model)?, model)
}

pub(super) fn encoder_outputs(
    case: &Case,
    model: &ImageEncoder,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/x")? else { return Ok(()) };
    no_grad(|| {
        computed.insert("tap/vit_ln_vision".to_owned(), model.seen(&pixels)?);
        computed.insert("tap/qformer".to_owned(), model.read(&pixels)?);
        computed.insert("out/y".to_owned(), model.forward(&pixels)?);
        if let Some(loss) = weighted(case, model, &pixels)? {
            computed.insert("out/loss".to_owned(), loss);
        }
        Ok::<(), Failure>(())
    })?;
    let pixels = pixels.leaf();
    if let Some(loss) = weighted(case, model, &pixels)?
        && let Some(grad) = loss.backward()?.get(&pixels)
    {
        computed.insert("grad/in.x".to_owned(), grad.detach());
    }
    Ok(())
}

/// The sum of what is shown, each value times a weight of the case.
fn weighted(case: &Case, model: &ImageEncoder, pixels: &Tensor) -> Result<Option<Tensor>, Failure> {
    let Some(weight) = case.tensor("in/loss_weight")? else { return Ok(None) };
    Ok(Some(model.forward(pixels)?.mul(&weight)?.sum()?))
}

pub(super) fn encoder_loss(case: &Case, model: &ImageEncoder) -> Result<Option<Tensor>, Failure> {
    match case.tensor("in/x")? {
        Some(pixels) => weighted(case, model, &pixels),
        None => Ok(None),
    }
}
