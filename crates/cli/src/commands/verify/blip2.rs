//! Results of a BLIP-2.

use super::Computed;
use super::case::Case;
use super::qformer::texts;
use crate::failure::Failure;
use ocelli_models::systems::blip2::{Blip2, FirstStage, Negatives, negative_weights, to_write};
use ocelli_tensor::{Tensor, no_grad};

pub(super) fn outputs(case: &Case, model: &Blip2, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        if case.wants("in/image") {
            return first_stage_outputs(case, model, computed);
        }
        if model.config().matching.is_some() {
            matching_outputs(case, model, computed)?;
        }
        Ok(())
    })
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
    match first_stage(case, model)? {
        Some(stage) => Ok(Some(stage.loss()?)),
        None => Ok(None),
    }
}
