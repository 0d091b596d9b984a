//! Results of a CLIP.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_data::text::{Truncate, prompts};
use ocelli_models::Files;
use ocelli_models::systems::clip::{Clip, Vision};
use ocelli_tensor::{Tensor, no_grad};
use std::sync::Arc;

pub(super) fn outputs(case: &Case, model: &Clip, computed: &mut Computed) -> Result<(), Failure> {
    no_grad(|| {
        let pixels = case.tensor("in/pixel_values")?;
        if let (Some(pixels), Some(ids)) = (&pixels, case.ids("in/input_ids")?) {
            let texts = case.rows("in/input_ids");
            let compared = model.compare(pixels, &ids, texts)?;
            computed.insert("out/logits_per_text".to_owned(), compared.logits.transpose()?);
            computed.insert("out/logits_per_image".to_owned(), compared.logits);
            computed.insert("out/image_embeds".to_owned(), compared.images);
            computed.insert("out/text_embeds".to_owned(), compared.texts);
            let raw =
                [("image", model.encode_image(pixels)?), ("text", model.encode_text(&ids, texts)?)];
            for (name, features) in raw {
                computed.insert(format!("out/{name}_features_raw"), features);
            }
            computed.insert("out/loss".to_owned(), model.loss(pixels, &ids)?);
        }
        if let (Some(pixels), Vision::Vit(tower)) =
            (case.tensor("in/pixel_values_interp")?, model.vision())
        {
            computed.insert("out/interp_last_hidden".to_owned(), tower.features(&pixels)?);
        }
        let names = case.texts("class_names");
        if let (Some(pixels), false) = (&pixels, names.is_empty()) {
            zero_shot(case, model, pixels, &names, computed)?;
        }
        Ok(())
    })
}

/// The classifier from prompts: per class the features of all templates, each of length 1, their
/// mean, of length 1 again (Radford et al. 2021, §3.1.4).
fn zero_shot(
    case: &Case,
    model: &Clip,
    pixels: &Tensor,
    names: &[String],
    computed: &mut Computed,
) -> Result<(), Failure> {
    let files = Files::find(&case.checkpoint, None)?;
    let (tokenizer, context) = (files.tokenizer()?, files.context_length()?);
    let templates = case.texts("templates");
    let mut classes = Vec::new();
    for name in names {
        let texts = prompts(name, &templates).map_err(ocelli_data::Error::from)?;
        let mut ids = Vec::new();
        for text in &texts {
            let tokens =
                tokenizer.encode(text, context, Truncate::Cut).map_err(ocelli_data::Error::from)?;
            ids.extend(tokens);
        }
        let features = model.encode_text(&Arc::from(ids), texts.len())?.l2_normalise()?;
        let width = features.shape()[1];
        let mean = features.reshape(&[1, texts.len(), width])?.mean_tokens(0)?;
        classes.push(mean.l2_normalise()?); // [1, embed_dim]
    }
    let classifier = Tensor::cat(&classes.iter().collect::<Vec<_>>(), 0)?; // [classes, embed_dim]
    let images = model.encode_image(pixels)?.l2_normalise()?;
    let logits = images.linear(&classifier, None)?.scale(100.0)?; // [images, classes]
    let best = |row: &[f32]| {
        let first = (0, f32::NEG_INFINITY);
        row.iter().enumerate().fold(first, |top, (i, v)| if *v > top.1 { (i, *v) } else { top }).0
    };
    let top: Vec<f32> = logits.values().chunks_exact(names.len()).map(|r| best(r) as f32).collect();
    computed.insert("out/top1".to_owned(), Tensor::from_slice(&top, &[top.len()])?);
    computed.insert("out/logits".to_owned(), logits);
    computed.insert("out/classifier".to_owned(), classifier.transpose()?);
    Ok(())
}

pub(super) fn loss(case: &Case, model: &Clip) -> Result<Option<Tensor>, Failure> {
    match (case.tensor("in/pixel_values")?, case.ids("in/input_ids")?) {
        (Some(pixels), Some(ids)) => Ok(Some(model.loss(&pixels, &ids)?)),
        _ => Ok(None),
    }
}
