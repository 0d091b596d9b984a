//! `ocelli generate`: text that goes on from a prompt.

use crate::failure::Failure;
use crate::global::Global;
use crate::interrupt;
use crate::output::Output;
use crate::pictures;
use crate::sampling::SamplingArgs;
use crate::session::{self, ModelArgs};
use crate::template::{Form, TemplateArgs};
use crate::written::Written;
use ocelli_data::text::{IMAGE_MARK, Tokenizer};
use ocelli_models::connector::splice::Spliced;
use ocelli_models::generate::{Cache, Decoder, Flow, Prompt, Rows, Settings, generate};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::systems::talker::{Talker, ids, text_ids};
use ocelli_tensor::Tensor;
use serde::Serialize;
use std::cell::Cell;
use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tokens of an answer where nothing is said.
const USUAL_TOKENS: usize = 256;
/// Prompts that are gone on from side by side.
const BATCH: usize = 8;

/// Go on from a prompt with a language model
///
/// Writes what the model adds to each prompt. On a terminal a single answer appears as it is written; Ctrl-C ends it there.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli generate -m gpt2 -i \"The cat sat on the\" -n 20
  ocelli generate -m models/llama -i \"Once upon a time\" --temperature 0.8 --top-p 0.95 --seed 7
  ocelli generate -m models/llava --image photo.jpg -i \"What is in the picture?\"
  ocelli generate -m models/chat.gguf --chat -i \"Name three rivers.\"
  ocelli generate -m models/llama -i \"One,\" -i \"Red,\" --num-beams 4 --json")]
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
    /// Put each prompt into the model's template as the message of a user, as `ocelli run` does
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Write a line of JSON for each prompt
    #[arg(long, alias = "jsonl")]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    ids: &'a [u32],
    prompt_tokens: usize,
    image_tokens: usize,
    generated_tokens: usize,
    prefill_ms: f64,
    decode_ms: f64,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let source = session::find(global, &args.model)?;
    let usual = Settings::greedy(USUAL_TOKENS, &source.end_tokens()?);
    let mut settings = args.sampling.settings(&usual)?;
    let tokenizer = source.language_tokenizer();
    let own = tokenizer.as_ref().map_or(Ok(None), |tokenizer| source.chat_template(tokenizer));
    let processor = (!args.image.is_empty()).then(|| source.processor()).transpose()?;
    let session = source.open(global)?;
    let talker = session.opened.model.talker();
    let causal = talker.map(Talker::language).or(session.opened.model.causal());
    let Some(model) = causal else {
        return Err(session.unsuitable("going on from a prompt", "a language model"));
    };
    let tokenizer = tokenizer?;
    if settings.eos.is_empty() {
        settings.eos.extend(tokenizer.named().end);
    }
    let mut pictures = Vec::new();
    if let Some(processor) = &processor {
        let Some(talker) = talker else {
            return Err(session.unsuitable("--image", "a LLaVA or a MiniGPT"));
        };
        for path in &args.image {
            pictures.extend(talker.pictures(&pictures::one(path, processor)?)?);
        }
    }
    let form = if args.chat || !pictures.is_empty() {
        Some(args.template.form(&tokenizer, talker, own?)?)
    } else {
        None
    };
    let read = |text: &String| {
        let text = match &form {
            Some(form) if args.chat || !text.contains(IMAGE_MARK) => {
                form.render(&form.show(pictures.len(), text))?
            }
            _ => text.clone(),
        };
        let ids = match (talker, &form) {
            (Some(_), _) => ids(&tokenizer, &text),
            (None, Some(_)) => text_ids(&tokenizer, &text),
            (None, None) => tokenizer.encode(&text, true),
        };
        Ok(Spliced::new(model, &ids, None, &pictures)?.into())
    };
    let mut stops = args.sampling.stop.clone();
    if args.chat {
        stops.extend(form.iter().flat_map(Form::stops));
    }
    interrupt::watch();
    let mut out = Output::new();
    let shows = !args.json && args.prompt.len() == 1 && stdout().is_terminal();
    for prompts in args.prompt.chunks(BATCH) {
        let prompts: Result<Vec<Prompt>, Failure> = prompts.iter().map(read).collect();
        write(model, &tokenizer, &settings, &prompts?, &stops, args.json, shows, &mut out)?;
        out.flush()?;
        if interrupt::asked() {
            return Err(Failure::interrupted());
        }
    }
    Ok(())
}

/// A decoder that measures how long it reads prompts.
struct Timed<'a> {
    decoder: &'a dyn CausalModel,
    prefill: Cell<Duration>,
}

impl Decoder for Timed<'_> {
    fn context_length(&self) -> Option<usize> {
        self.decoder.context_length()
    }

    fn embed(&self, ids: &[u32]) -> ocelli_models::Result<Tensor> {
        self.decoder.embed(ids)
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

/// Goes on from some prompts side by side.
fn write(
    model: &dyn CausalModel,
    tokenizer: &Tokenizer,
    settings: &Settings,
    prompts: &[Prompt],
    stops: &[String],
    is_json: bool,
    shows: bool,
    out: &mut Output,
) -> Result<(), Failure> {
    let mut written: Vec<Written> =
        prompts.iter().map(|_| Written::new(tokenizer, stops)).collect();
    let started = Instant::now();
    let timed = Timed { decoder: model, prefill: Cell::default() };
    let mut broken = None;
    let mut cache = model.new_cache(prompts.len());
    let answers = generate(&timed, prompts, &mut cache, settings, &mut |row, id| {
        let more = written[row].push(id);
        if shows && broken.is_none() {
            broken = out.text(more).and_then(|()| out.flush()).err();
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
    let prefill = timed.prefill.get();
    let decode = started.elapsed().saturating_sub(prefill);
    for ((written, answer), prompt) in written.iter_mut().zip(&answers).zip(prompts) {
        let rest = written.finish();
        if shows {
            out.text(rest)?;
            out.text("\n")?;
        } else if is_json {
            out.json(&Line {
                text: written.text(),
                ids: &answer.ids,
                prompt_tokens: prompt.ids.len(),
                image_tokens: prompt.image_tokens,
                generated_tokens: answer.ids.len(),
                prefill_ms: prefill.as_secs_f64() * 1e3,
                decode_ms: decode.as_secs_f64() * 1e3,
            })?;
        } else {
            out.text(written.text())?;
            out.text("\n")?;
        }
    }
    Ok(())
}
