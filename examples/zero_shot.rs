//! What is in a picture, by labels in words and the model inside the program.
//!
//! Run: `cargo run --release --example zero_shot -- examples/pictures/fox.svg fox guitar pizza`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use ocelli_data::image::{Limits, open};
use ocelli_data::text::Truncate;
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_tensor::{Tensor, no_grad};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let (path, labels) = (given.next().ok_or("name a picture")?, given.collect::<Vec<_>>());
    let files = Files::builtin()?;
    let (processor, tokenizer) = (files.processor()?, files.tokenizer()?);
    let context = files.context_length()?;
    let model = files.open(HeadCounts::default())?.model;
    let Model::Clip(clip) = model else { return Err("no CLIP".into()) };

    let picture = open(path, &Limits::default())?;
    let (width, height) = processor.size_for(picture.width(), picture.height())?;
    let pixels = Tensor::from_slice(&processor.pixels(&picture)?, &[1, 3, height, width])?;
    let mut ids = Vec::new(); // [labels, context]
    for label in &labels {
        ids.extend(tokenizer.encode(label, context, Truncate::Cut)?);
    }

    let compared = no_grad(|| clip.compare(&pixels, &ids.into(), labels.len()))?;
    for (label, probability) in labels.iter().zip(softmax(compared.logits.values())) {
        println!("{probability:.3}  {label}");
    }
    Ok(())
}

fn softmax(logits: &[f32]) -> impl Iterator<Item = f32> {
    let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(move |logit| logit.exp() / sum)
}
