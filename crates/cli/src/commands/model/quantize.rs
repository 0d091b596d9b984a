//! `ocelli model quantize`: weights as bytes, and what that changes.

use crate::failure::Failure;
use crate::global::Global;
use crate::output::Output;
use crate::pictures::{PictureArgs, Pictures};
use crate::session::{self, ModelArgs, Session, Source};
use crate::table::{bytes, columns};
use ocelli_tensor::no_grad;
use std::path::{Path, PathBuf};

/// Write a model with the weights of its linear layers as 8-bit numbers
///
/// Each output of a layer has a scale; nothing has to be calibrated, as what a layer reads gets a scale for each row when it runs. The new folder reads like the old one, and its layers multiply in 8 bits.
#[derive(clap::Args)]
#[command(mut_arg("model", session::required))]
#[command(after_help = "\
Examples:
  ocelli model quantize -m openai/clip-vit-base-patch32 -o clip-int8
  ocelli model quantize -m models/vit -o vit-int8 photos/

With pictures it says how close the embeddings of both are.")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Folder to write; it must not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    pictures: PictureArgs,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let to = &args.output;
    if to.exists() {
        let what = format!("{} exists; name a new folder by -o", to.display());
        return Err(Failure::usage(what));
    }
    let source = session::find(global, &args.model)?;
    let written = source.save_in_bytes(to)?;
    let mut rows = vec![
        vec!["weights as bytes".to_owned(), written.weights.to_string()],
        vec![written.file.display().to_string(), bytes(size(&written.file)?)],
    ];
    if !args.pictures.images.is_empty() {
        let close = closeness(global, args, source)?;
        rows.push(vec!["pictures".to_owned(), close.len().to_string()]);
        let mean = close.iter().sum::<f32>() / close.len().max(1) as f32;
        let least = close.iter().copied().fold(1.0, f32::min);
        rows.push(vec!["cosine".to_owned(), format!("{mean:.5} on average, {least:.5} at least")]);
    }
    let mut out = Output::new();
    out.text(&columns(&rows))?;
    out.flush()
}

fn size(file: &Path) -> Result<u64, Failure> {
    let said = std::fs::metadata(file);
    Ok(said.map_err(|e| Failure::input(format!("cannot read {}: {e}", file.display())))?.len())
}

/// The cosine between what the model and its copy in bytes make of each picture.
fn closeness(global: &Global, args: &Args, source: Source) -> Result<Vec<f32>, Failure> {
    let copy = ModelArgs { model: Some(args.output.display().to_string()), ..args.model.clone() };
    let mut pictures = Pictures::start(&args.pictures, source.processor()?)?;
    let copy = session::find(global, &copy)?.open(global, args.pictures.work())?;
    let model = source.open(global, args.pictures.work())?;
    let mut close = Vec::new();
    while let Some(batch) = pictures.next_batch()? {
        if let Some(broken) = batch.pictures.iter().find_map(|p| p.error.as_deref()) {
            return Err(Failure::input(broken.to_owned()));
        }
        let Some(pixels) = &batch.pixels else { continue };
        let of = |session: &Session| no_grad(|| session.embed_images(pixels));
        let (a, b) = (of(&model)?, of(&copy)?);
        let width = a.shape().last_axis();
        let rows = a.values().chunks_exact(width).zip(b.values().chunks_exact(width));
        close.extend(rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()));
    }
    Ok(close)
}
