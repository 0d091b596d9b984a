//! `ocelli tokenize`: texts as the ids that the model sees.

use crate::failure::Failure;
use crate::global::Global;
use crate::output::Output;
use crate::session::{self, ModelArgs, Tokenizer};
use clap::ValueEnum;
use ocelli_data::text::{Behaviour, Truncate};
use serde::Serialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, stdin};
use std::path::Path;

/// Turn texts into the ids that a model sees
///
/// Reads a JSON object {"text": ...} a line and writes {"ids": [...]} a line: start, words and end,
/// cut to the model's context unless it is a language model's. Padding is left out. Blank lines may only follow the last text. Needs the tokenizer's files, not the weights.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  echo '{\"text\": \"a photo of a cat\"}' | ocelli tokenize -m openai/clip-vit-base-patch32
  ocelli tokenize -m clip/ --raw < captions.jsonl > ids.jsonl")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Leave out start and end, and cut nothing
    #[arg(long)]
    raw: bool,
    /// The program whose rules are followed; default: that of the model's family
    #[arg(long, hide = true)]
    behaviour: Option<Rules>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rules {
    #[value(name = "openai")]
    OpenAi,
    #[value(name = "open_clip")]
    OpenClip,
    #[value(name = "huggingface")]
    HuggingFace,
    #[value(name = "sentencepiece")]
    SentencePiece,
}

#[derive(Serialize)]
struct Answer<'a> {
    ids: &'a [u32],
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let behaves = |behaviour| session::tokenizer(global, &args.model, behaviour);
    let tokenizer = match args.behaviour {
        None => behaves(None)?,
        Some(Rules::OpenAi) => behaves(Some(Behaviour::OpenAi))?,
        Some(Rules::OpenClip) => behaves(Some(Behaviour::OpenClip))?,
        Some(Rules::HuggingFace) => behaves(Some(Behaviour::HuggingFace))?,
        Some(Rules::SentencePiece) => {
            let dir = args.model.model.as_deref().unwrap_or(".");
            Tokenizer::Language(Box::new(session::sentencepiece(Path::new(dir))?))
        }
    };
    let mut input = BufReader::new(stdin());
    let mut out = Output::new();
    let mut line = String::new();
    let mut blank = None;
    for number in 1_u64.. {
        line.clear();
        let wrong = |number: u64, reason: String| {
            Failure::input(format!(
                "standard input line {number}: {reason}; expected a JSON object {{\"text\": ...}}"
            ))
        };
        if input.read_line(&mut line).map_err(|e| wrong(number, e.to_string()))? == 0 {
            break;
        }
        if line.trim().is_empty() {
            blank = blank.or(Some(number));
        } else if let Some(number) = blank {
            // Left out, it would give its answer's line to the next text.
            return Err(wrong(number, "blank".to_owned()));
        } else {
            let text = text(&line).map_err(|reason| wrong(number, reason))?;
            let ids = ids(&tokenizer, &text, args.raw)?;
            out.json(&Answer { ids: &ids })?;
        }
        // Whoever waits for an answer before the next line gets it.
        if input.buffer().is_empty() {
            out.flush()?;
        }
    }
    out.flush()
}

/// The text of a request, or what is wrong with it.
fn text(line: &str) -> Result<String, String> {
    let request = serde_json::from_str(line.trim_end()).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        format!("no JSON ({reason} at column {})", e.column())
    })?;
    match request {
        Value::Object(mut fields) => match fields.remove("text") {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err("\"text\" is no string".to_owned()),
            None => Err("no \"text\"".to_owned()),
        },
        _ => Err("no object".to_owned()),
    }
}

fn ids(tokenizer: &Tokenizer, text: &str, raw: bool) -> Result<Vec<u32>, Failure> {
    let ids = match (tokenizer, raw) {
        (Tokenizer::Clip(tokenizer, _), true) => return Ok(tokenizer.encode_raw(text)),
        (Tokenizer::Bert(tokenizer, _), true) => return Ok(tokenizer.encode_raw(text)),
        (Tokenizer::Language(tokenizer), raw) => return Ok(tokenizer.encode(text, !raw)),
        (Tokenizer::Clip(tokenizer, context), false) => {
            // Fewer tokens than the context, so that nothing is padded.
            let tokens = (tokenizer.encode_raw(text).len() + 2).min(*context);
            tokenizer.encode(text, tokens, Truncate::Cut)
        }
        (Tokenizer::Bert(tokenizer, context), false) => {
            tokenizer.encode(text, *context, Truncate::Cut)
        }
    };
    Ok(ids.map_err(ocelli_data::Error::from)?)
}
