//! Results of a BLIP-2.

use super::case::Case;
use super::qformer::{mask, texts};
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_models::connector::qformer::Memory;
use ocelli_models::generate::{Flow, generate};
use ocelli_models::language::bert::Texts;
use ocelli_models::systems::blip2::Blip2;
use ocelli_models::systems::blip2_pretraining::{
    FirstStage, Negatives, negative_weights, to_write,
};
use ocelli_models::systems::blip2_writing::{LanguageConfig, Lessons, WritingConfig};
use ocelli_tensor::{Targets, Tensor, no_grad};

pub(super) fn outputs(case: &Case, model: &Blip2, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        if case.wants("in/image") {
            return first_stage_outputs(case, model, computed);
        }
        if let Some(writing) = &model.config().writing {
            writing_outputs(case, model, writing, computed)?;
        } else if model.config().matching.is_some() {
            matching_outputs(case, model, computed)?;
        }
        Ok(())
    })
}

/// What a language model says of pictures.
fn writing_outputs(
    case: &Case,
    model: &Blip2,
    writing: &WritingConfig,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
    let tower = model.vision().forward(&pixels)?;
    let memory = model.normalise(&tower)?;
    // The reference normalises the class token once more.
    let class = memory.tokens.narrow(1, 0, 1)?;
    computed.insert("out/vision_pooled".to_owned(), model.normalise(&class)?.tokens);
    computed.insert("out/image_embeds".to_owned(), memory.tokens.clone());
    if let Some(pixels) = case.tensor("in/pixel_values_interp")? {
        computed.insert("out/interp_image_embeds".to_owned(), model.image_tokens(&pixels)?.tokens);
    }
    let states = match instruction(case)? {
        Some(instruction) => model.qformer().joint_states(&memory, &instruction)?,
        None => model.qformer().hidden_states(&memory)?,
    };
    computed.insert("out/q_layernorm".to_owned(), states[0].clone());
    for (i, state) in states.into_iter().skip(1).enumerate() {
        computed.insert(format!("out/q_layer{i}"), state.clone());
        computed.insert("out/qformer_last_hidden".to_owned(), state);
    }
    let shown = model.shown(&read(case, model, &memory)?)?;
    computed.insert("out/language_projection".to_owned(), shown.clone());
    if let Some(lessons) = lessons(case)? {
        computed.insert("out/logits".to_owned(), model.logits(&shown, &lessons)?);
        computed.insert("out/loss".to_owned(), model.loss(&shown, &lessons)?);
    }
    written(case, model, writing, &shown, computed)
}

/// The text that the queries are shown, if the case has one.
fn instruction(case: &Case) -> Result<Option<Texts>, Failure> {
    texts(case, "in/qformer_input_ids", "in/qformer_attention_mask")
}

/// What the queries read in pictures.
fn read(case: &Case, model: &Blip2, memory: &Memory) -> Result<Tensor, Failure> {
    Ok(match instruction(case)? {
        Some(instruction) => model.qformer().join(memory, &instruction)?,
        None => model.qformer().forward(memory)?,
    })
}

/// Texts and labels, where -100 takes no part.
fn lessons(case: &Case) -> Result<Option<Lessons>, Failure> {
    let texts = texts(case, "in/input_ids", "in/attention_mask")?;
    let (Some(texts), true) = (texts, case.wants("in/labels")) else { return Ok(None) };
    let labels = case.golden.read_i64("in/labels")?.into_iter();
    let labels = labels.map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect();
    Ok(Some(Lessons { texts, labels, label_mask: mask(case, "in/decoder_attention_mask")? }))
}

/// Computes every `gen/*`. A run without a prompt has the picture and the id that texts begin with.
fn written(
    case: &Case,
    model: &Blip2,
    writing: &WritingConfig,
    shown: &Tensor,
    computed: &mut Computed,
) -> Result<(), Failure> {
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let (ids, width, rows) = if name.contains("noprompt") {
            let ids = model.with_picture(&[writing.bos_id])?;
            let rows = vec![ids.clone(); shown.shape()[0]];
            (rows.concat(), ids.len(), rows)
        } else {
            let Some(stored) = generation::Stored::read(case)? else { continue };
            (stored.ids, stored.width, stored.rows)
        };
        // An encoder's text is no part of the answer, which begins behind a token of its own.
        let (ids, width) = match &writing.language {
            LanguageConfig::T5(c) => (vec![c.start_id; rows.len()], 1),
            _ => (ids, width),
        };
        let settings = generation::settings(case, name, width);
        let (prompts, mut cache) = model.prompts(shown, &rows)?;
        let go_on = &mut |_, _| Flow::Continue;
        let answers = generate(model.decoder()?, &prompts, &mut cache, &settings, go_on)?;
        // The reference's beam search takes a padding id of 0 for none.
        let is_none = name.contains("beam") && writing.pad_id == 0;
        let pad = settings.eos.first().filter(|_| is_none).copied().unwrap_or(writing.pad_id);
        computed.insert(name.clone(), generation::padded(&ids, width, &answers, pad));
    }
    Ok(())
}

/// Pictures against texts, and each picture with its text.
fn matching_outputs(case: &Case, model: &Blip2, computed: &mut Computed) -> Result<(), Failure> {
    let pixels = case.tensor("in/pixel_values")?;
    let texts = texts(case, "in/input_ids", "in/attention_mask")?;
    let (Some(pixels), Some(texts)) = (pixels, texts) else { return Ok(()) };
    let memory = model.image_tokens(&pixels)?;
    let states = model.qformer().joint_states(&memory, &texts)?;
    computed.insert("out/itm_q_layernorm".to_owned(), states[0].clone());
    for (i, state) in states.into_iter().skip(1).enumerate() {
        computed.insert(format!("out/itm_q_layer{i}"), state.clone());
        computed.insert("out/itm_last_hidden".to_owned(), state);
    }
    let pairs = &computed["out/itm_last_hidden"];
    computed.insert("out/itm_logits".to_owned(), model.match_logits(pairs)?);
    let contrast = model.compare(&memory, &texts)?;
    computed.insert("out/itc_logits_per_text".to_owned(), contrast.cosines.transpose()?);
    computed.insert("out/itc_logits_per_image".to_owned(), contrast.cosines);
    computed.insert("out/itc_image_embeds".to_owned(), contrast.images);
    computed.insert("out/itc_text_embeds".to_owned(), contrast.texts);
    Ok(())
}

fn first_stage_outputs(case: &Case, model: &Blip2, computed: &mut Computed) -> Result<(), Failure> {
    let Some(pixels) = case.tensor("in/image")? else { return Ok(()) };
    let tower = model.vision().forward(&pixels)?;
    let memory = model.normalise(&tower)?;
    computed.insert("out/visual_encoder".to_owned(), tower);
    computed.insert("out/image_embeds".to_owned(), memory.tokens.clone());
    let Some(stage) = first_stage(case, model)? else { return Ok(()) };
    let by_text = stage.similarities.transpose()?;
    computed.insert("out/neg_weights_i2t".to_owned(), negative_weights(&stage.similarities)?);
    computed.insert("out/neg_weights_t2i".to_owned(), negative_weights(&by_text)?);
    let loss = stage.loss()?;
    for (name, tensor) in [
        ("query_output", stage.contrast.queries),
        ("text_output", stage.contrast.tokens),
        ("image_feats", stage.contrast.images),
        ("text_feat", stage.contrast.texts),
        ("sim_i2t", stage.similarities),
        ("sim_t2i", by_text),
        ("itm_hidden", stage.pairs),
        ("itm_logits", stage.match_logits),
        ("loss_itc", stage.contrast_loss),
        ("loss_itm", stage.matching_loss),
        ("loss_lm", stage.language_loss),
        ("loss", loss),
    ] {
        computed.insert(format!("out/{name}"), tensor);
    }
    if let (Some(texts), Some(bos)) =
        (texts(case, "in/input_ids", "in/attention_mask")?, case.id("bos_token_id"))
    {
        let (written, _) = to_write(&texts, bos);
        computed.insert("out/lm_logits".to_owned(), model.qformer().write(&memory, &written)?);
    }
    Ok(())
}

/// The losses of the first stage, with the negatives of the case.
fn first_stage(case: &Case, model: &Blip2) -> Result<Option<FirstStage>, Failure> {
    let pixels = case.tensor("in/image")?;
    let texts = texts(case, "in/input_ids", "in/attention_mask")?;
    let negatives = (case.ids("in/neg_image_index")?, case.ids("in/neg_text_index")?);
    let (Some(pixels), Some(texts), (Some(images), Some(negative_texts)), Some(bos)) =
        (pixels, texts, negatives, case.id("bos_token_id"))
    else {
        return Ok(None);
    };
    let negatives = Negatives { images, texts: negative_texts };
    let memory = model.image_tokens(&pixels)?;
    Ok(Some(model.first_stage(&memory, &texts, bos, &negatives)?))
}

pub(super) fn loss(case: &Case, model: &Blip2) -> Result<Option<Tensor>, Failure> {
    if let Some(stage) = first_stage(case, model)? {
        return Ok(Some(stage.loss()?));
    }
    let lessons = lessons(case)?.filter(|_| model.config().writing.is_some());
    let (Some(pixels), Some(lessons)) = (case.tensor("in/pixel_values")?, lessons) else {
        return Ok(None);
    };
    let memory = model.image_tokens(&pixels)?;
    let shown = model.shown(&read(case, model, &memory)?)?;
    Ok(Some(model.loss(&shown, &lessons)?))
}
