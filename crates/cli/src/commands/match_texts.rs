//! `ocelli match`: how well texts describe pictures.

use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::output::{Output, Unread};
use crate::pictures::{PictureArgs, Pictures};
use crate::progress::Progress;
use crate::session::{self, ModelArgs};
use crate::table;
use ocelli_tensor::no_grad;
use serde::Serialize;

/// Score how well texts describe pictures
///
/// Prints the cosine of each picture with each text, and the logit: the cosine times the model's
/// temperature.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli match -m clip/ --text 'a red car' photo.jpg
  ocelli match -m clip/ --text 'a cat' --text 'a dog' --jsonl photos/")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A text; repeat it for several
    #[arg(long, value_name = "TEXT", required = true)]
    text: Vec<String>,
    /// A JSON object a line: {"image", "texts": [{"text", "cosine", "logit"}, ...]}
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    pictures: PictureArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    image: &'a str,
    texts: Vec<Match<'a>>,
}

#[derive(Serialize)]
struct Match<'a> {
    text: &'a str,
    cosine: f32,
    logit: f32,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    args.pictures.check_given()?;
    let source = session::find(global, &args.model)?;
    let mut pictures = Pictures::start(&args.pictures, source.processor()?)?;
    let session = source.open(global)?;
    let scale = session.temperature("matching with texts")?;
    interrupt::watch();
    let texts = no_grad(|| Ok::<_, Failure>(session.encode_texts(&args.text)?.l2_normalise()?))?;
    let total = Inputs::count(&args.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, true);
    let mut out = Output::new();
    let mut unread = false;
    while let Some(batch) = pictures.next_batch()? {
        let cosines = match &batch.pixels {
            Some(pixels) => no_grad(|| {
                let images = session.embed_images(pixels)?;
                Ok::<_, Failure>(images.linear(&texts, None)?.values().to_vec())
            })?,
            None => Vec::new(),
        };
        let mut rows = cosines.chunks_exact(args.text.len());
        for picture in &batch.pictures {
            let image = &picture.name;
            if let Some(error) = &picture.error {
                unread = true;
                if args.jsonl {
                    out.json(&Unread { image, error })?;
                } else {
                    out.text(&table::unread(image, error, global.has_color()))?;
                }
                continue;
            }
            let row = rows.next().unwrap_or_default();
            let matches = args.text.iter().zip(row);
            let texts: Vec<Match> = matches
                .map(|(text, &cosine)| Match { text, cosine, logit: scale * cosine })
                .collect();
            if args.jsonl {
                out.json(&Line { image, texts })?;
            } else {
                out.text(&table::heading(image, global.has_color()))?;
                let mut rows = vec![["  text", "cosine", "logit"].map(str::to_owned).to_vec()];
                rows.extend(texts.iter().map(|m| {
                    vec![
                        format!("  {}", m.text),
                        format!("{:.3}", m.cosine),
                        format!("{:.2}", m.logit),
                    ]
                }));
                out.text(&table::columns(&rows))?;
            }
        }
        out.flush()?;
        progress.add(batch.pictures.len());
    }
    if unread { Err(Failure::input_reported()) } else { Ok(()) }
}
