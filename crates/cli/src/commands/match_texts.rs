//! `ocelli match`: how well texts describe pictures.

use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::output::{Output, Unread};
use crate::pictures::{PictureArgs, Pictures};
use crate::progress::Progress;
use crate::session::{self, ModelArgs, Session};
use crate::table;
use ocelli_models::language::bert::Texts;
use ocelli_models::systems::matcher::Matcher;
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;

/// Score how well texts describe pictures
///
/// Prints the cosine of each picture with each text, and the logit: the cosine times the model's
/// temperature. A model that reads both together, such as a BLIP, gives the probability that they
/// match in place of the logit.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli match -m clip/ --text 'a red car' photo.jpg
  ocelli match -m clip/ --text 'a cat' --text 'a dog' --jsonl photos/
  ocelli match -m Salesforce/blip-itm-base-coco --text 'two dogs in the snow' photo.jpg")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A text; repeat it for several
    #[arg(long, value_name = "TEXT", required = true)]
    text: Vec<String>,
    /// A JSON object a line: {"image", "texts": [{"text", "cosine", "logit" or "match_prob"}, ...]}
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    pictures: PictureArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    image: &'a str,
    texts: &'a [Match<'a>],
}

#[derive(Serialize)]
struct Match<'a> {
    text: &'a str,
    cosine: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    logit: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "match_prob")]
    probability: Option<f32>,
}

/// How pictures are compared with the texts.
enum Comparison<'a> {
    /// By features of the texts `[texts, width]`, each of length 1, and the temperature.
    Features(Tensor, f32),
    /// By what reads both together.
    Together(&'a dyn Matcher, Texts),
}

impl Comparison<'_> {
    /// Of each picture with each text, row by row.
    fn of<'a>(
        &self,
        session: &Session,
        pixels: &Tensor,
        given: &'a [String],
    ) -> Result<Vec<Match<'a>>, Failure> {
        let (cosines, probabilities) = match self {
            Self::Features(texts, _) => (session.embed_images(pixels)?.linear(texts, None)?, None),
            Self::Together(matcher, texts) => {
                let scores = matcher.scores(pixels, texts)?;
                (scores.cosines, Some(scores.probabilities))
            }
        };
        let scale = if let Self::Features(_, scale) = self { Some(scale) } else { None };
        let one = |(i, &cosine): (usize, &f32)| Match {
            text: &given[i % given.len()],
            cosine,
            logit: scale.map(|scale| scale * cosine),
            probability: probabilities.as_ref().map(|p| p.values()[i]),
        };
        Ok(cosines.values().iter().enumerate().map(one).collect())
    }
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    args.pictures.check_given()?;
    let source = session::find(global, &args.model)?;
    let mut pictures = Pictures::start(&args.pictures, source.processor()?)?;
    let session = source.open(global, args.pictures.work())?;
    let comparison = match session.opened.model.matcher() {
        Some(matcher) => Comparison::Together(matcher, session.read(&args.text)?),
        None => {
            let scale =
                session.temperature("matching with texts", "a CLIP, a LiT, a BLIP or a BLIP-2")?;
            let texts =
                no_grad(|| Ok::<_, Failure>(session.encode_texts(&args.text)?.l2_normalise()?))?;
            Comparison::Features(texts, scale)
        }
    };
    interrupt::watch();
    let total = Inputs::count(&args.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, true);
    let mut out = Output::new();
    let mut unread = false;
    while let Some(batch) = pictures.next_batch()? {
        let matches = match &batch.pixels {
            Some(pixels) => no_grad(|| comparison.of(&session, pixels, &args.text))?,
            None => Vec::new(),
        };
        let mut rows = matches.chunks_exact(args.text.len());
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
            let texts = rows.next().unwrap_or_default();
            if args.jsonl {
                out.json(&Line { image, texts })?;
            } else {
                out.text(&table::heading(image, global.has_color()))?;
                out.text(&table::columns(&cells(texts)))?;
            }
        }
        out.flush()?;
        progress.add(batch.pictures.len());
    }
    if unread { Err(Failure::input_reported()) } else { Ok(()) }
}

/// The table of a picture.
fn cells(texts: &[Match]) -> Vec<Vec<String>> {
    let last = if texts.iter().any(|m| m.probability.is_some()) { "match" } else { "logit" };
    let mut rows = vec![["  text", "cosine", last].map(str::to_owned).to_vec()];
    rows.extend(texts.iter().map(|m| {
        let logit = m.logit.map(|logit| format!("{logit:.2}"));
        let prob = m.probability.map(|prob| format!("{:.1} %", prob * 100.0));
        let last = logit.or(prob).unwrap_or_default();
        vec![format!("  {}", m.text), format!("{:.3}", m.cosine), last]
    }));
    rows
}
