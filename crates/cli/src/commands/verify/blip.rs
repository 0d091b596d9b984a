//! Results of a BLIP.

use super::case::Case;
use super::qformer::texts;
use super::{Computed, generation};
use crate::failure::Failure;
use ocelli_data::text::Tokenizer;
use ocelli_models::Opened;
use ocelli_models::generate::Flow;
use ocelli_models::language::bert::Memory;
use ocelli_models::systems::blip::Blip;
use ocelli_models::systems::blip_pretraining::{Pretraining, negative_weights};
use ocelli_models::systems::blip2_pretraining::Negatives;
use ocelli_tensor::{Targets, Tensor, no_grad};

pub(super) fn outputs(
    case: &Case,
    opened: &Opened,
    model: &Blip,
    computed: &mut Computed,
) -> Result<(), Failure> {
    no_grad(|| {
        if let Some(pixels) = case.tensor("in/image")? {
            return pretraining_outputs(case, opened, model, &pixels, computed);
        }
        let Some(pixels) = case.tensor("in/pixel_values")? else { return Ok(()) };
        for (i, state) in model.vision().hidden_states(&pixels)?.into_iter().enumerate() {
            let name = if i == 0 { "embeddings".to_owned() } else { format!("layer{}", i - 1) };
            computed.insert(format!("out/v_{name}"), state);
        }
        let memory = model.image_tokens(&pixels)?;
        computed.insert("out/image_embeds".to_owned(), memory.tokens.clone());
        // The same picture in other sizes.
        for name in case.inputs("in/pixel_values_") {
            let Some(pixels) = case.tensor(&name)? else { continue };
            let size = name.trim_start_matches("in/pixel_values_");
            let tokens = model.image_tokens(&pixels)?.tokens;
            computed.insert(format!("out/{size}_image_embeds"), tokens);
        }
        match (model.config().embed_dim, &model.config().encoder) {
            (Some(_), _) => matching_outputs(case, model, &memory, computed),
            (None, Some(_)) => question_outputs(case, model, &memory, computed),
            (None, None) => caption_outputs(case, model, &memory, computed),
        }
    })
}

fn matching_outputs(
    case: &Case,
    model: &Blip,
    memory: &Memory,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(read) = texts(case, "in/input_ids", "in/attention_mask")? else { return Ok(()) };
    let contrast = model.compare(memory, &read)?;
    computed.insert("out/itc_similarity".to_owned(), contrast.cosines()?);
    computed.insert("out/itc_hidden".to_owned(), contrast.tokens);
    let pairs = model.encoder()?.features(&read, Some(memory))?;
    computed.insert("out/itm_logits".to_owned(), model.match_logits(&pairs)?);
    computed.insert("out/itm_hidden".to_owned(), pairs);
    if let Some(read) = texts(case, "in/input_ids_enc", "in/attention_mask")? {
        let pairs = model.encoder()?.features(&read, Some(memory))?;
        computed.insert("out/itm_logits_enc_token".to_owned(), model.match_logits(&pairs)?);
    }
    Ok(())
}

fn caption_outputs(
    case: &Case,
    model: &Blip,
    memory: &Memory,
    computed: &mut Computed,
) -> Result<(), Failure> {
    if let Some(read) = texts(case, "in/input_ids", "in/attention_mask")? {
        let decoder = model.decoder()?;
        for (i, state) in decoder.hidden_states(&read, Some(memory))?.into_iter().enumerate() {
            let name = if i == 0 { "embeddings".to_owned() } else { format!("layer{}", i - 1) };
            computed.insert(format!("out/t_{name}"), state);
        }
        let logits = decoder.words(&decoder.features(&read, Some(memory))?)?;
        if let Some(labels) = labels(case)? {
            // `loss` has the smoothing of the configuration, `loss_smoothing_0.1` one of its own.
            for name in case.inputs("out/loss") {
                let smoothing = name.strip_prefix("out/loss_smoothing_").map(str::parse);
                let smoothing = smoothing.and_then(Result::ok);
                let smoothing = smoothing.unwrap_or(model.config().label_smoothing);
                computed.insert(name, decoder.loss(&logits, &labels, smoothing)?);
            }
        }
        computed.insert("out/logits".to_owned(), logits);
    }
    caption_ids(case, model, memory, computed)
}

/// What the model writes about the pictures, with and without the case's prompt.
fn caption_ids(
    case: &Case,
    model: &Blip,
    memory: &Memory,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let tokens = model.config().tokens;
    let batch = memory.tokens.shape()[0];
    let mut prompt = vec![tokens.decode];
    if let Some(text) = case.settings["prompt"].as_str() {
        let tokenizer = Tokenizer::from_dir(&case.checkpoint).map_err(ocelli_data::Error::from)?;
        prompt = tokenizer.encode(text, true);
        let ids: Vec<f32> = prompt.repeat(batch).into_iter().map(|id| id as f32).collect();
        let ids = Tensor::from_slice(&ids, &[batch, prompt.len()])?;
        computed.insert("gen/prompt_ids".to_owned(), ids);
        // The caption goes on from the prompt, so its end is left out.
        prompt.pop();
        prompt[0] = tokens.decode;
    }
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let start = if name.contains("noprompt") { &prompt[..1] } else { &prompt };
        computed.insert(name.clone(), written(case, model, memory, name, start)?);
    }
    Ok(())
}

/// The ids of the texts that the result `name` asks for, `start` included.
fn written(
    case: &Case,
    model: &Blip,
    memory: &Memory,
    name: &str,
    start: &[u32],
) -> Result<Tensor, Failure> {
    let tokens = model.config().tokens;
    let mut settings = generation::settings(case, name, start.len());
    settings.eos = vec![tokens.separator];
    let answers = model.continue_text(memory, start, &settings, &mut |_, _| Flow::Continue)?;
    Ok(generation::padded(&start.repeat(answers.len()), start.len(), &answers, tokens.pad))
}

fn question_outputs(
    case: &Case,
    model: &Blip,
    memory: &Memory,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(questions) = texts(case, "in/input_ids", "in/attention_mask")? else { return Ok(()) };
    for (i, state) in
        model.encoder()?.hidden_states(&questions, Some(memory))?.into_iter().skip(1).enumerate()
    {
        computed.insert(format!("out/question_layer{i}"), state);
    }
    let asked = model.question(memory, &questions)?;
    computed.insert("out/question_states".to_owned(), asked.tokens.clone());
    if let Some(answers) = texts(case, "in/decoder_input_ids", "in/decoder_attention_mask")? {
        let decoder = model.decoder()?;
        let states = decoder.hidden_states(&answers, Some(&asked))?;
        for (i, state) in states.into_iter().skip(1).enumerate() {
            computed.insert(format!("out/answer_layer{i}"), state);
        }
        let logits = decoder.words(&decoder.features(&answers, Some(&asked))?)?;
        computed.insert("out/answer_logits".to_owned(), logits);
    }
    if let Some(value) = loss(case, model)? {
        computed.insert("out/loss".to_owned(), value);
    }
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let start = [model.config().tokens.decode];
        computed.insert(name.clone(), written(case, model, &asked, name, &start)?);
    }
    Ok(())
}

fn pretraining_outputs(
    case: &Case,
    opened: &Opened,
    model: &Blip,
    pixels: &Tensor,
    computed: &mut Computed,
) -> Result<(), Failure> {
    computed.insert("out/image_embeds".to_owned(), model.image_tokens(pixels)?.tokens);
    let Some(step) = pretraining(case, model)? else { return Ok(()) };
    computed.insert("out/neg_weights_i2t".to_owned(), negative_weights(&step.by_image)?);
    computed.insert("out/neg_weights_t2i".to_owned(), negative_weights(&step.by_text)?);
    computed.insert("out/loss".to_owned(), step.loss()?);
    after_the_step(opened, model, &step, computed)?;
    let [images, texts] = step.copies;
    for (name, tensor) in [
        ("image_feat", step.contrast.images),
        ("text_feat", step.contrast.texts),
        ("image_feat_m", images),
        ("text_feat_m", texts),
        ("sim_i2t", step.by_image),
        ("sim_t2i", step.by_text),
        ("itm_logits", step.match_logits),
        ("lm_logits", step.words),
        ("loss_ita", step.contrast_loss),
        ("loss_itm", step.matching_loss),
        ("loss_lm", step.language_loss),
    ] {
        computed.insert(format!("out/{name}"), tensor);
    }
    Ok(())
}

/// The queues after a step, and the copies after they have followed once. All is put back.
fn after_the_step(
    opened: &Opened,
    model: &Blip,
    step: &Pretraining,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let momentum = |name: &str| name.starts_with("momentum.");
    let moves = |name: &str| momentum(name) || name.starts_with("queue.") || name == "temperature";
    let moving: Vec<_> = opened.parameters.iter().filter(|p| moves(p.name())).collect();
    let before: Vec<Tensor> = moving.iter().map(|p| p.tensor()).collect();
    model.remember(&step.copies)?;
    model.follow(&opened.parameters, model.config().momentum);
    let after = opened.parameters.export(&opened.names, |p| {
        (momentum(p.name()) || p.name().starts_with("queue.")).then(|| p.tensor())
    });
    for (name, shape, values) in after {
        let kind = if name.ends_with("queue") {
            format!("queue/{name}_after")
        } else {
            format!("momentum/{name}")
        };
        computed.insert(kind, Tensor::from_slice(&values, &shape)?);
    }
    for (parameter, before) in moving.into_iter().zip(before) {
        parameter.update(|values| values.copy_from_slice(before.values()));
    }
    Ok(())
}

/// The losses of pre-training, with the negatives of the case.
fn pretraining(case: &Case, model: &Blip) -> Result<Option<Pretraining>, Failure> {
    let pixels = case.tensor("in/image")?;
    let read = texts(case, "in/input_ids", "in/attention_mask")?;
    let negatives = (case.ids("in/neg_image_index")?, case.ids("in/neg_text_index")?);
    let (Some(pixels), Some(read), (Some(images), Some(texts))) = (pixels, read, negatives) else {
        return Ok(None);
    };
    let negatives = Negatives { images, texts };
    Ok(Some(model.pretrain(&pixels, &read, model.config().alpha, &negatives)?))
}

/// The labels, where -100 takes no part.
fn labels(case: &Case) -> Result<Option<Vec<u32>>, Failure> {
    if !case.wants("in/labels") {
        return Ok(None);
    }
    let labels = case.golden.read_i64("in/labels")?;
    Ok(Some(labels.into_iter().map(|l| u32::try_from(l).unwrap_or(Targets::IGNORED)).collect()))
}

pub(super) fn loss(case: &Case, model: &Blip) -> Result<Option<Tensor>, Failure> {
    if let Some(step) = pretraining(case, model)? {
        return Ok(Some(step.loss()?));
    }
    let (Some(pixels), Some(read), Some(labels)) = (
        case.tensor("in/pixel_values")?,
        texts(case, "in/input_ids", "in/attention_mask")?,
        labels(case)?,
    ) else {
        return Ok(None);
    };
    let memory = model.image_tokens(&pixels)?;
    let smoothing = model.config().label_smoothing;
    let Some(answers) = texts(case, "in/decoder_input_ids", "in/decoder_attention_mask")? else {
        return Ok(Some(model.loss(&memory, &read, &labels, smoothing)?));
    };
    let asked = model.question(&memory, &read)?;
    Ok(Some(model.loss(&asked, &answers, &labels, smoothing)?))
}
