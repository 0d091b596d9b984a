//! `ocelli generate`: text that goes on from a prompt.

use crate::boxes::{Boxes, DrawArgs, Drawing, Frame};
use crate::failure::Failure;
use crate::global::Global;
use crate::interrupt;
use crate::memory::Bound;
use crate::output::Output;
use crate::pictures::{self, Reading};
use crate::reader::{Asked, Reader};
use crate::sampling::SamplingArgs;
use crate::session::{self, ModelArgs};
use crate::shots::{self, ShotArgs};
use crate::template::{Form, TemplateArgs};
use crate::videos::VideoArgs;
use crate::written::Written;
use ocelli_data::text::{IMAGE_MARK, Tokenizer};
use ocelli_models::Work;
use ocelli_models::generate::{Cache, Decoder, Flow, Prompt, Rows, Settings, generate};
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;
use std::cell::Cell;
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Tokens of an answer where nothing is said.
const USUAL_TOKENS: usize = 256;
/// Prompts that are gone on from side by side.
const BATCH: usize = 8;

/// Go on from a prompt with a language model
///
/// Writes what the model adds to each prompt. On a terminal a single answer appears as it is written; Ctrl-C ends it there.
#[derive(clap::Args)]
#[command(mut_arg("model", session::required))]
#[command(after_help = "\
Examples:
  ocelli generate -m gpt2 -i \"The cat sat on the\" -n 20
  ocelli generate -m models/llama -i \"Once upon a time\" --temperature 0.8 --top-p 0.95 --seed 7
  ocelli generate -m models/llava --image photo.jpg -i \"What is in the picture?\"
  ocelli generate -m google/flan-t5-base -i \"translate English to German: Where is the cat?\"
  ocelli generate -m models/chat.gguf --chat -i \"Name three rivers.\"
  ocelli generate -m models/llama -i \"One,\" -i \"Red,\" --num-beams 4 --json
  ocelli generate -m minigpt-v2/ --image photo.jpg -i \"[detection] dog\" --draw dogs.png")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to go on from; may be given several times
    #[arg(
        short = 'i',
        long,
        value_name = "TEXT",
        required = true,
        alias = "query",
        short_alias = 'p'
    )]
    prompt: Vec<String>,
    /// Picture for each <image> of a prompt; may be given several times. A prompt without <image> is
    /// put into the model's conversation template, behind its pictures
    #[arg(long, value_name = "IMG", aliases = ["image-file", "image_file"])]
    image: Vec<PathBuf>,
    #[command(flatten)]
    videos: VideoArgs,
    #[command(flatten)]
    shots: ShotArgs,
    /// Put each prompt into the model's template as the message of a user, as `ocelli run` does
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Write a line of JSON for each prompt; prompt_tokens counts the tokens of its pictures too
    #[arg(long, alias = "jsonl")]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    ids: &'a [u32],
    /// All that the model reads, pictures included.
    prompt_tokens: usize,
    image_tokens: usize,
    generated_tokens: usize,
    prefill_ms: f64,
    decode_ms: f64,
    /// On the last picture.
    #[serde(flatten)]
    boxes: &'a Boxes,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let given = pictures::listed(&args.image);
    if args.draw.draw.is_some() && (args.prompt.len() > 1 || args.image.is_empty()) {
        return Err(Failure::usage(
            "--draw draws one answer on its picture; give one -i and --image",
        ));
    }
    let reading = Reading::of(args.videos);
    let mut examples = args.shots.read()?;
    match given.last() {
        None if args.shots.nearest.is_some() => {
            let what = "--nearest: there is no picture to be near to; give one by --image";
            return Err(Failure::usage(what));
        }
        Some(picture) => {
            if let Some(nearest) = args.shots.find_nearest(global, &examples, reading)? {
                examples = shots::picked(examples, &nearest.to(picture)?);
            }
        }
        None => {}
    }
    let source = session::find(global, &args.model)?;
    let usual = Settings::greedy(USUAL_TOKENS, &source.end_tokens()?);
    let mut settings = args.sampling.settings(&usual)?;
    let tokenizer = source.language_tokenizer();
    let own = tokenizer.as_ref().map_or(Ok(None), |tokenizer| source.chat_template(tokenizer));
    let is_seeing = !args.image.is_empty() || !examples.is_empty();
    let processor = is_seeing.then(|| source.processor()).transpose()?;
    let texts = args.prompt.len().min(BATCH);
    let (beams, new) = args.sampling.extent(USUAL_TOKENS);
    let words = |text: &String| tokenizer.as_ref().map_or(0, |t| t.encode(text, true).len());
    let work = |written| Work {
        texts: beams * texts,
        read: args.prompt.iter().map(words).max().unwrap_or(0),
        written,
        pictures: texts * (given.len() + examples.len()) * args.videos.most(),
    };
    let bound = Bound { option: "-n", most: new, work: &work };
    let session = source.open_within(global, &bound)?;
    args.videos.check(&session)?;
    let (mut seen, mut frame) = (Vec::new(), None);
    if let Some(processor) = &processor {
        for example in &examples {
            seen.extend(example.pixels(reading, processor)?);
        }
        for path in &given {
            let (pixels, of) = pictures::one(path, reading, processor)?;
            seen.push(pixels);
            frame = Some((path.as_path(), of));
        }
    }
    let reader = Reader::of(&session, &seen)?;
    let tokenizer = session.fitting(tokenizer?)?;
    if settings.eos.is_empty() {
        settings.eos = reader.ends();
    }
    if settings.eos.is_empty() {
        settings.eos.extend(tokenizer.named().end);
    }
    let drawing = Drawing::new(&session, &args.draw, false)?;
    let talker = session.opened.model.talker();
    if talker.is_none() && !examples.is_empty() {
        let needs = "a model that reads several pictures, such as a Flamingo or a LLaVA";
        return Err(session.unsuitable("--shots", needs));
    }
    let form = if args.chat || (talker.is_some() && is_seeing) {
        reader.check_chat(&session)?;
        Some(args.template.form(&tokenizer, talker, own?)?)
    } else {
        None
    };
    let text = |text: &String| match &form {
        Some(form) if args.chat || !text.contains(IMAGE_MARK) => {
            let mut turns = shots::turns(&examples, form);
            turns.extend(form.show(given.len(), text));
            form.render(&turns)
        }
        Some(form) if !examples.is_empty() => {
            Ok(form.render(&shots::turns(&examples, form))? + text)
        }
        _ => Ok(text.clone()),
    };
    let mut stops = args.sampling.stop.clone();
    if args.chat {
        stops.extend(form.iter().flat_map(Form::stops));
    }
    interrupt::watch();
    let mut out = Output::new();
    let shows = !args.json && args.prompt.len() == 1 && stdout().is_terminal();
    for prompts in args.prompt.chunks(BATCH) {
        let texts = prompts.iter().map(text).collect::<Result<Vec<_>, Failure>>()?;
        let begins = form.is_some();
        let asked = no_grad(|| reader.read(&texts, &tokenizer, begins))?;
        let how = Shown { as_written: shows, is_json: args.json, stops: &stops, drawing, frame };
        write(asked, &tokenizer, &settings, &how, &mut out)?;
        out.flush()?;
        if interrupt::asked() {
            return Err(Failure::interrupted());
        }
    }
    Ok(())
}

/// A decoder that measures how long it reads prompts.
struct Timed<'a> {
    decoder: &'a dyn Decoder,
    prefill: Cell<Duration>,
}

impl Decoder for Timed<'_> {
    fn context_length(&self) -> Option<usize> {
        self.decoder.context_length()
    }

    fn embed(&self, ids: &[u32]) -> ocelli_models::Result<Tensor> {
        self.decoder.embed(ids)
    }

    fn show(&self, prompts: &[Prompt], cache: &mut Cache) -> ocelli_models::Result<()> {
        self.decoder.show(prompts, cache)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> ocelli_models::Result<Tensor> {
        let (started, is_prompt) = (Instant::now(), cache.lens().iter().all(|len| *len == 0));
        let logits = self.decoder.advance(rows, cache)?;
        if is_prompt {
            self.prefill.set(self.prefill.get() + started.elapsed());
        }
        Ok(logits)
    }
}

/// How answers are shown.
struct Shown<'a> {
    /// While they are written, on a terminal.
    as_written: bool,
    is_json: bool,
    /// Texts that end an answer.
    stops: &'a [String],
    drawing: Drawing<'a>,
    /// The last picture.
    frame: Option<(&'a Path, Frame)>,
}

/// Goes on from some prompts side by side.
fn write(
    mut asked: Asked,
    tokenizer: &Tokenizer,
    settings: &Settings,
    shown: &Shown,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut written: Vec<Written> =
        asked.prompts.iter().map(|_| Written::new(tokenizer, shown.stops)).collect();
    let started = Instant::now();
    let timed = Timed { decoder: asked.decoder, prefill: Cell::default() };
    let mut broken = None;
    let answers = generate(&timed, &asked.prompts, &mut asked.cache, settings, &mut |row, id| {
        let more = written[row].push(id);
        if shown.as_written && broken.is_none() {
            broken = out.written(more).and_then(|()| out.flush()).err();
        }
        if written[row].is_over() || interrupt::asked() || broken.is_some() {
            Flow::Stop
        } else {
            Flow::Continue
        }
    })?;
    if let Some(failure) = broken {
        return Err(failure);
    }
    let decode = started.elapsed().saturating_sub(timed.prefill.get());
    let prefill = asked.encoding + timed.prefill.get();
    for ((written, answer), read) in written.iter_mut().zip(&answers).zip(&asked.read) {
        let rest = written.finish();
        if shown.as_written {
            out.written(rest)?;
            out.text("\n")?;
        } else if !shown.is_json {
            out.written(written.text())?;
            out.text("\n")?;
        }
        let text = written.text();
        let boxes = shown.frame.map(|(_, frame)| shown.drawing.read(text, frame));
        let boxes = boxes.unwrap_or_default();
        if shown.is_json {
            out.json(&Line {
                text,
                ids: &answer.ids,
                prompt_tokens: read.tokens,
                image_tokens: read.image_tokens,
                generated_tokens: answer.ids.len(),
                prefill_ms: prefill.as_secs_f64() * 1e3,
                decode_ms: decode.as_secs_f64() * 1e3,
                boxes: &boxes,
            })?;
        }
        if let Some((picture, _)) = shown.frame {
            out.flush()?;
            shown.drawing.show(&boxes, picture)?;
        }
    }
    Ok(())
}
