//! Examples that a model is shown before what it is asked.

use crate::failure::Failure;
use crate::films::FilmArgs;
use crate::pictures;
use crate::template::Form;
use clap::Args;
use ocelli_data::image::Processor;
use ocelli_data::text::Turn;
use ocelli_models::systems::talker::{Shot, Talker};
use ocelli_tensor::{Tensor, no_grad};
use serde::Deserialize;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a file of examples that are read.
const MOST_BYTES: u64 = 1 << 20;
/// Examples of a prompt; the paper shows 32.
const MOST: usize = 256;

/// Where examples are.
#[derive(Args, Debug)]
pub(crate) struct ShotArgs {
    /// JSON file of examples to learn from in the prompt: a list of {"image", "question", "text"},
    /// where "text" is the answer; without "image" an example of text alone
    #[arg(long, value_name = "FILE")]
    pub(crate) shots: Option<PathBuf>,
}

/// An example as its file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Example {
    /// Beside the file, if the path is not absolute.
    image: Option<PathBuf>,
    pub(crate) question: Option<String>,
    pub(crate) text: String,
}

impl ShotArgs {
    /// The examples of the file, if there is one.
    pub(crate) fn read(&self) -> Result<Vec<Example>, Failure> {
        let Some(path) = &self.shots else { return Ok(Vec::new()) };
        let wrong = |why: String| Failure::input(format!("--shots {}: {why}", path.display()));
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
            .map_err(|e| wrong(format!("cannot read it: {e}")))?;
        if text.len() as u64 > MOST_BYTES {
            return Err(wrong(format!("more than {MOST_BYTES} bytes; give fewer examples")));
        }
        let mut examples: Vec<Example> = serde_json::from_str(&text).map_err(|e| {
            wrong(format!("{e}; expected a list of {{\"image\", \"question\", \"text\"}}"))
        })?;
        if examples.len() > MOST {
            return Err(wrong(format!("{} examples; give at most {MOST}", examples.len())));
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        for example in &mut examples {
            example.image = example.image.take().map(|image| dir.join(image));
        }
        Ok(examples)
    }
}

/// What the model reads of the pictures of examples, as of [`pictures::one`].
pub(crate) fn pixels(
    examples: &[Example],
    films: FilmArgs,
    processor: &Processor,
) -> Result<Vec<Option<Tensor>>, Failure> {
    let one = |example: &Example| {
        let image = example.image.as_deref();
        image.map(|path| Ok(pictures::one(path, films, processor)?.0)).transpose()
    };
    examples.iter().map(one).collect()
}

/// The turns that show the examples.
pub(crate) fn turns(examples: &[Example], form: &Form) -> Vec<Turn> {
    let mut turns = Vec::new();
    for example in examples {
        let question = example.question.as_deref().unwrap_or_default();
        turns.extend(form.show(usize::from(example.image.is_some()), question));
        if let Some(turn) = turns.last_mut() {
            turn.answer = Some(example.text.clone());
        }
    }
    turns
}

/// The examples as `talker` reads them.
pub(crate) fn seen(
    examples: Vec<Example>,
    films: FilmArgs,
    processor: &Processor,
    talker: &dyn Talker,
) -> Result<Vec<Shot>, Failure> {
    let pixels = pixels(&examples, films, processor)?;
    let shot = |(example, pixels): (Example, Option<Tensor>)| {
        let pictures = pixels.map(|pixels| no_grad(|| talker.pictures(&pixels))).transpose()?;
        let picture = pictures.and_then(|mut pictures| pictures.pop());
        Ok(Shot { picture, question: example.question, answer: example.text })
    };
    examples.into_iter().zip(pixels).map(shot).collect()
}
