//! Examples that a model is shown before what it is asked.

use crate::failure::Failure;
use crate::global::Global;
use crate::nearest::Nearest;
use crate::pictures::{self, Reading};
use crate::retrieval;
use crate::template::Form;
use clap::Args;
use ocelli_data::image::Processor;
use ocelli_data::text::Turn;
use ocelli_models::systems::talker::{Shot, Talker};
use ocelli_tensor::{Tensor, no_grad};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a file of examples that are read.
const MOST_BYTES: u64 = 16 << 20;
/// Examples of a prompt; the paper shows 32.
const MOST: u16 = 256;

/// Where examples are.
#[derive(Args, Debug)]
pub(crate) struct ShotArgs {
    /// JSON file of examples to learn from in the prompt: a list of {"image", "question", "text"},
    /// where "text" is the answer; without "image" an example of text alone
    #[arg(long, value_name = "FILE")]
    pub(crate) shots: Option<PathBuf>,
    /// Show the K examples whose pictures are nearest to the one that is asked about, the nearest last
    #[arg(long, value_name = "K", requires = "shots", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)))]
    pub(crate) nearest: Option<u16>,
    /// Model that tells which pictures are near, of those that `ocelli embed` takes [default: the
    /// built-in model for drawings]
    #[arg(long, value_name = "MODEL", requires = "nearest")]
    by: Option<String>,
}

/// An example as its file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Example {
    /// Beside the file, if the path is not absolute.
    pub(crate) image: Option<PathBuf>,
    pub(crate) question: Option<String>,
    pub(crate) text: String,
}

impl ShotArgs {
    /// How many of `examples` are shown at a time.
    pub(crate) fn shown(&self, examples: &[Example]) -> usize {
        self.nearest.map_or(examples.len(), |count| examples.len().min(count.into()))
    }

    /// What finds the nearest of `examples`, if those are to be shown.
    pub(crate) fn find_nearest(
        &self,
        global: &Global,
        examples: &[Example],
        reading: Reading,
    ) -> Result<Option<Nearest>, Failure> {
        let Some(count) = self.nearest.filter(|_| !examples.is_empty()) else { return Ok(None) };
        let asked = (usize::from(count), self.by.as_deref());
        Ok(Some(Nearest::open(global, asked, examples, reading)?))
    }

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
        let (most, or) = match self.nearest {
            Some(_) => (retrieval::MOST, ""),
            None => (MOST.into(), ", or show the nearest ones by --nearest K"),
        };
        if examples.len() > most {
            return Err(wrong(format!("{} examples; give at most {most}{or}", examples.len())));
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        for example in &mut examples {
            example.image = example.image.take().map(|image| dir.join(image));
        }
        Ok(examples)
    }
}

impl Example {
    /// What the model reads of its picture, as of [`pictures::one`].
    pub(crate) fn pixels(
        &self,
        reading: Reading,
        processor: &Processor,
    ) -> Result<Option<Tensor>, Failure> {
        let image = self.image.as_deref();
        image.map(|path| Ok(pictures::one(path, reading, processor)?.0)).transpose()
    }
}

/// Those of `examples` with these numbers, in their order.
pub(crate) fn picked(examples: Vec<Example>, order: &[usize]) -> Vec<Example> {
    let mut examples: Vec<Option<Example>> = examples.into_iter().map(Some).collect();
    order.iter().filter_map(|i| examples[*i].take()).collect()
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

/// Who reads examples, and how their pictures reach it.
type Eyes<'a> = (&'a dyn Talker, Reading, &'a Processor);

/// Examples before what is asked.
pub(crate) struct Examples<'a> {
    eyes: Eyes<'a>,
    choice: Choice,
}

/// Which examples are shown.
enum Choice {
    /// The same before every picture.
    All(Vec<Shot>),
    Nearest(Box<Nearest>, Vec<Example>),
}

impl<'a> Examples<'a> {
    /// All of `examples`, or of these the nearest.
    pub(crate) fn new(
        examples: Vec<Example>,
        nearest: Option<Nearest>,
        eyes: Eyes<'a>,
    ) -> Result<Self, Failure> {
        let choice = match nearest {
            Some(nearest) => Choice::Nearest(Box::new(nearest), examples),
            None => {
                let shots = examples.iter().map(|example| seen(example, eyes));
                Choice::All(shots.collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { eyes, choice })
    }

    /// Who reads them.
    pub(crate) fn talker(&self) -> &'a dyn Talker {
        self.eyes.0
    }

    /// What is shown before each of some pictures.
    pub(crate) fn before(&self, pictures: &[&Path]) -> Result<Vec<Vec<Shot>>, Failure> {
        let (nearest, examples) = match &self.choice {
            Choice::All(shots) => return Ok(vec![shots.clone(); pictures.len()]),
            Choice::Nearest(nearest, examples) => (nearest, examples),
        };
        // An example that is near to several pictures is looked at once.
        let mut all: BTreeMap<usize, Shot> = BTreeMap::new();
        let mut shown = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let mut shots = Vec::new();
            for i in nearest.to(picture)? {
                let shot = match all.entry(i) {
                    Entry::Occupied(shot) => shot.into_mut(),
                    Entry::Vacant(place) => place.insert(seen(&examples[i], self.eyes)?),
                };
                shots.push(shot.clone());
            }
            shown.push(shots);
        }
        Ok(shown)
    }
}

/// An example as a system reads it.
fn seen(example: &Example, (talker, reading, processor): Eyes) -> Result<Shot, Failure> {
    let pixels = example.pixels(reading, processor)?;
    let pictures = pixels.map(|pixels| no_grad(|| talker.pictures(&pixels))).transpose()?;
    Ok(Shot {
        picture: pictures.and_then(|mut pictures| pictures.pop()),
        question: example.question.clone(),
        answer: example.text.clone(),
    })
}
