//! A text about each picture.

use crate::boxes::{Boxes, DrawArgs, Drawing, Frame, RegionArgs};
use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::memory::Bound;
use crate::output::{Output, Unread};
use crate::pictures::{PictureArgs, Pictures};
use crate::progress::Progress;
use crate::sampling::SamplingArgs;
use crate::session::{self, ModelArgs};
use crate::shots::{Examples, ShotArgs};
use crate::table;
use crate::videos::VideoArgs;
use crate::written::Written;
use ocelli_data::text::Tokenizer;
use ocelli_models::Work;
use ocelli_models::generate::{Flow, Settings};
use ocelli_models::systems::talker::write_after;
use ocelli_models::systems::writer::{Request, Writer};
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;
use std::path::Path;

/// What is written, about which pictures, by which model and how.
pub(crate) struct Texts<'a> {
    pub(crate) model: &'a ModelArgs,
    pub(crate) request: Request<'a>,
    pub(crate) shots: &'a ShotArgs,
    pub(crate) sampling: &'a SamplingArgs,
    /// A JSON object a line.
    pub(crate) jsonl: bool,
    pub(crate) videos: VideoArgs,
    pub(crate) pictures: &'a PictureArgs,
    pub(crate) draw: &'a DrawArgs,
    /// A box that the question is about.
    pub(crate) region: Option<&'a RegionArgs>,
}

/// Tokens of an answer, where nothing is said, and of what is asked, for the need of memory.
const USUAL_TOKENS: usize = 512;
const WORDS: usize = 64;

#[derive(Serialize)]
struct Line<'a> {
    image: &'a str,
    text: &'a str,
    #[serde(flatten)]
    boxes: &'a Boxes,
}

/// Writes a text about each picture, in the order of the pictures.
pub(crate) fn write(global: &Global, asked: &Texts) -> Result<(), Failure> {
    asked.pictures.check_given()?;
    if asked.draw.draw.is_some() && !matches!(&asked.pictures.images[..], [one] if !one.is_dir()) {
        return Err(Failure::usage("--draw draws on one picture; name one file"));
    }
    let examples = asked.shots.read()?;
    if let Request::Answer(_) = asked.request
        && examples.iter().any(|example| example.question.is_none())
    {
        let what = "--shots: every example of `vqa` needs a \"question\"";
        return Err(Failure::usage(what));
    }
    let source = session::find(global, asked.model)?;
    // That the model is of another kind says more than that it has no such tokenizer.
    let tokenizer = source.language_tokenizer();
    let end_tokens = source.end_tokens();
    let processor = source.processor()?;
    let (beams, new) = asked.sampling.extent(USUAL_TOKENS);
    let pictures_at_once = asked.pictures.work();
    let shots = asked.shots.shown(&examples);
    let work = |written| Work {
        texts: beams * pictures_at_once.pictures,
        read: WORDS * (1 + shots),
        written,
        pictures: pictures_at_once.pictures * (1 + shots) * asked.videos.most(),
    };
    let mut pictures = Pictures::start_videos(asked.pictures, asked.videos, processor.clone())?;
    let bound = Bound { option: "-n", most: new, work: &work };
    let session = source.open_within(global, &bound)?;
    asked.videos.check(&session)?;
    let Some(writer) = session.opened.model.writer() else {
        let needs = "a model that sees and writes, such as a BLIP";
        return Err(session.unsuitable("writing about pictures", needs));
    };
    let shown = match session.opened.model.talker() {
        _ if examples.is_empty() => None,
        Some(talker) => {
            let reading = asked.pictures.reading(asked.videos);
            let nearest = asked.shots.find_nearest(global, &examples, reading)?;
            Some(Examples::new(examples, nearest, (talker, reading, &processor))?)
        }
        None => {
            let needs = "a model that reads several pictures, such as a Flamingo or a LLaVA";
            return Err(session.unsuitable("--shots", needs));
        }
    };
    let drawing = Drawing::new(&session, asked.draw, asked.pictures.upright)?;
    drawing.knows(&session, asked.region.is_some())?;
    let tokenizer = session.fitting(tokenizer?)?;
    let mut settings = asked.sampling.settings(&writer.usual(&asked.request))?;
    if settings.eos.is_empty() {
        settings.eos = end_tokens?;
    }
    if settings.eos.is_empty() {
        settings.eos.extend(tokenizer.named().end);
    }
    interrupt::watch();
    let total = Inputs::count(&asked.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, true);
    let mut out = Output::new();
    let mut unread = false;
    while let Some(batch) = pictures.next_batch()? {
        let texts = match &batch.pixels {
            Some(pixels) => {
                let read = batch.pictures.iter().filter(|picture| picture.error.is_none());
                let read: Vec<&Path> = read.map(|picture| Path::new(&picture.name)).collect();
                let about = (&read[..], pixels);
                let question = match (asked.region, asked.request, &batch.pictures[..]) {
                    (Some(region), Request::Answer(question), [picture]) => {
                        let frame = Frame::new(&processor, picture.size).map_err(Failure::input)?;
                        Some(region.ask(question, &drawing, frame)?)
                    }
                    _ => None,
                };
                let request = question.as_deref().map_or(asked.request, Request::Answer);
                let asked = &Texts { request, ..*asked };
                of_batch(asked, (writer, shown.as_ref()), &tokenizer, &settings, about)?
            }
            None => Vec::new(),
        };
        let mut texts = texts.iter();
        for picture in &batch.pictures {
            let image = &picture.name;
            match (&picture.error, asked.jsonl) {
                (Some(error), true) => out.json(&Unread { image, error })?,
                (Some(error), false) => {
                    out.text(&table::unread(image, error, global.has_color()))?;
                }
                (None, jsonl) => {
                    let text = texts.next().map_or("", String::as_str);
                    let frame = Frame::new(&processor, picture.size).map_err(Failure::input)?;
                    let boxes = drawing.read(text, frame);
                    if jsonl {
                        out.json(&Line { image, text, boxes: &boxes })?;
                    } else {
                        out.text(&table::heading(image, global.has_color()))?;
                        out.written(&format!("  {text}\n"))?;
                    }
                    out.flush()?;
                    drawing.show(&boxes, Path::new(image))?;
                }
            }
            unread |= picture.error.is_some();
        }
        out.flush()?;
        if interrupt::asked() {
            return Err(Failure::interrupted());
        }
        progress.add(batch.pictures.len());
    }
    if unread { Err(Failure::input_reported()) } else { Ok(()) }
}

/// The texts of the pictures that were read.
fn of_batch(
    asked: &Texts,
    (writer, examples): (&dyn Writer, Option<&Examples>),
    tokenizer: &Tokenizer,
    settings: &Settings,
    (pictures, pixels): (&[&Path], &Tensor),
) -> Result<Vec<String>, Failure> {
    let shots = examples.map(|examples| examples.before(pictures)).transpose()?;
    let stops = [&asked.sampling.stop[..], &writer.stops()].concat();
    let mut written: Vec<Written> =
        (0..pixels.shape()[0]).map(|_| Written::new(tokenizer, &stops)).collect();
    no_grad(|| {
        let on_token = &mut |picture: usize, id| {
            written[picture].push(id);
            let ends = written[picture].is_over() || interrupt::asked();
            if ends { Flow::Stop } else { Flow::Continue }
        };
        match (examples, shots) {
            (Some(examples), Some(shots)) => {
                let about = (pixels, &asked.request);
                write_after(examples.talker(), &shots, about, tokenizer, settings, on_token)
            }
            _ => writer.write(pixels, &asked.request, tokenizer, settings, on_token),
        }
    })?;
    let text = |mut written: Written| {
        written.finish();
        written.text().trim().to_owned()
    };
    Ok(written.into_iter().map(text).collect())
}
