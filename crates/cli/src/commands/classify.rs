//! `ocelli classify`: what is in a picture, by the classes of a ViT or by labels in words.

use crate::failure::Failure;
use crate::global::Global;
use crate::interrupt;
use crate::labels::LabelArgs;
use crate::output::{Output, Unread};
use crate::pictures::{Batch, PictureArgs, Pictures};
use crate::progress::Progress;
use crate::session::{self, ModelArgs, Session};
use crate::{inputs::Inputs, table};
use ocelli_models::Model;
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;

/// Name what is in pictures
///
/// A CLIP compares each picture with labels in words; a ViT with classes names the likeliest.
/// Probabilities sum to 1 over all labels.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli classify -m openai/clip-vit-base-patch32 --labels cat,dog,bird photos/
  ocelli classify -m clip/ --labels-file birds.txt --template 'a photo of a {}, a bird.' *.jpg
  ocelli classify -m clip/ --labels imagenet --template imagenet7 --top 3 photo.png
  find photos -newer last | ocelli classify -m vit/ --jsonl - > names.jsonl

A picture that cannot be read is reported in its place; the exit code is then 3.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    labels: LabelArgs,
    /// Labels shown for each picture
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// A JSON object a line: {"image", "labels": [{"label", "prob"}, ...]}
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    pictures: PictureArgs,
}

/// How a batch gets its scores.
enum Classifier {
    /// By the head of the model.
    Head,
    /// By rows of text features `[labels, width]`, times the temperature.
    Texts { rows: Tensor, scale: f32 },
}

#[derive(Serialize)]
struct Line<'a> {
    image: &'a str,
    labels: Vec<Label<'a>>,
}

#[derive(Serialize)]
struct Label<'a> {
    label: &'a str,
    prob: f32,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    args.pictures.check_given()?;
    let labels = args.labels.labels()?;
    let source = session::find(global, &args.model)?;
    let labels = labels.or_else(|| source.labels());
    let templates = args.labels.templates(source.template())?;
    let mut pictures = Pictures::start(&args.pictures, source.processor()?)?;
    let session = source.open(global, args.pictures.work())?;
    interrupt::watch();
    let (classifier, names) = match (session.classes(), labels) {
        (Some(_), _) if args.labels.is_given() => {
            return Err(Failure::usage(
                "this model has classes of its own; leave out --labels, --labels-file and \
                 --template, or take a CLIP",
            ));
        }
        (Some(names), _) => (Classifier::Head, names),
        (None, Some(labels)) => (by_texts(global, &session, &labels, &templates)?, labels),
        (None, None) => {
            if !matches!(session.opened.model, Model::Clip(_) | Model::Lit(_)) {
                let needs = "a CLIP or a ViT with classes";
                return Err(session.unsuitable("classification", needs));
            }
            return Err(Failure::usage(
                "no labels: give --labels a,b,c, --labels-file FILE or --labels imagenet",
            ));
        }
    };
    let total = Inputs::count(&args.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, true);
    let mut out = Output::new();
    let mut unread = 0;
    while let Some(batch) = pictures.next_batch()? {
        let probs = no_grad(|| probabilities(&session, &classifier, &batch))?;
        let mut rows = probs.chunks_exact(names.len());
        for picture in &batch.pictures {
            let image = &picture.name;
            match (&picture.error, args.jsonl) {
                (Some(error), true) => out.json(&Unread { image, error })?,
                (Some(error), false) => {
                    out.text(&table::unread(image, error, global.has_color()))?;
                }
                (None, jsonl) => {
                    let probs = rows.next().unwrap_or_default();
                    let labels = best(&names, probs, args.top as usize);
                    if jsonl {
                        out.json(&Line { image, labels })?;
                    } else {
                        let rows = labels.iter().map(|l| (l.label, l.prob));
                        out.text(&table::heading(image, global.has_color()))?;
                        out.text(&table::bars(rows, global.has_color()))?;
                    }
                }
            }
            unread += usize::from(picture.error.is_some());
        }
        out.flush()?;
        progress.add(batch.pictures.len());
    }
    if unread > 0 { Err(Failure::input_reported()) } else { Ok(()) }
}

/// Encodes the labels in every template.
fn by_texts(
    global: &Global,
    session: &Session,
    labels: &[String],
    templates: &[String],
) -> Result<Classifier, Failure> {
    let scale = session.temperature("classification by labels", "a CLIP or a LiT")?;
    let prompts = (labels.len() * templates.len()) as u64;
    let mut progress = Progress::new(global, "prompts", Some(prompts), false);
    let rows = no_grad(|| {
        ocelli_eval::classifier(labels, templates, |texts: &[String]| {
            if interrupt::asked() {
                return Err(Failure::interrupted());
            }
            let features = session.encode_texts(texts)?;
            progress.add(texts.len());
            Ok(features)
        })
    })?;
    Ok(Classifier::Texts { rows, scale })
}

/// Of every picture that was read, over all labels, row by row.
fn probabilities(
    session: &Session,
    classifier: &Classifier,
    batch: &Batch,
) -> Result<Vec<f32>, Failure> {
    let Some(pixels) = &batch.pixels else { return Ok(Vec::new()) };
    let logits = match classifier {
        Classifier::Head => session.logits(pixels)?,
        Classifier::Texts { rows, scale } => {
            session.embed_images(pixels)?.linear(rows, None)?.scale(*scale)?
        }
    };
    let labels = logits.shape().last_axis();
    let mut probs = logits.values().to_vec();
    probs.chunks_exact_mut(labels).for_each(softmax);
    Ok(probs)
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = (*v - largest).exp();
        sum += f64::from(*v);
    }
    for v in row {
        *v = (f64::from(*v) / sum) as f32;
    }
}

/// The `top` likeliest labels, highest first; of equal ones the earlier first.
fn best<'a>(names: &'a [String], probs: &[f32], top: usize) -> Vec<Label<'a>> {
    let mut order: Vec<usize> = (0..probs.len()).collect();
    order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
    order.iter().take(top).map(|&i| Label { label: &names[i], prob: probs[i] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_are_sorted() {
        let mut row = [1000.0, 1002.0, 1001.0, 1001.0];
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let labels = best(&names, &row, 3);
        assert_eq!(labels.iter().map(|l| l.label).collect::<Vec<_>>(), ["b", "c", "d"]);
    }
}
