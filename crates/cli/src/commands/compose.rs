//! `ocelli compose`: an article with pictures where they belong.

use crate::failure::Failure;
use crate::films::FilmArgs;
use crate::global::Global;
use crate::interrupt;
use crate::markdown;
use crate::output::{Output, write_file};
use crate::pictures::{self, PictureArgs, Pictures};
use crate::progress::Progress;
use crate::session::{self, ModelArgs, Session};
use ocelli_data::image::Processor;
use ocelli_models::systems::composition::{Album, Article, CANDIDATES, Composer, Placed};
use ocelli_models::systems::talker::Talker;
use ocelli_models::{Model, Work};
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{Read, Write, stderr, stdin};
use std::path::{Path, PathBuf};

/// Bytes of an article, and pictures of a folder, that are read.
const MOST_BYTES: u64 = 1 << 20;
const MOST_PICTURES: usize = 1 << 16;
/// Texts side by side, and tokens that are written, for the need of memory.
const TEXTS: usize = 5;
const WRITTEN: usize = 1000;

/// Put pictures into an article where they belong
///
/// An InternLM-XComposer writes an article for a title, or takes the text of a file, line by line. It
/// says behind which lines pictures belong and what they are to show, and chooses each among the four of
/// the folder that suit its caption best. A picture is placed once. Writes Markdown.
#[derive(clap::Args)]
#[command(mut_arg("model", session::required))]
#[command(after_help = "\
Examples:
  ocelli compose -m internlm-xcomposer-7b/ article.txt --pictures photos/ -o article.md
  ocelli compose -m internlm-xcomposer-7b/ --title 'Tea' --pictures photos/ --by clip/ --images 3

A picture that cannot be read is reported and left out; the exit code is then 3.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The article, a line for each paragraph; - for standard input
    #[arg(value_name = "FILE", required_unless_present = "title")]
    text: Option<PathBuf>,
    /// Title of an article that the model writes first
    #[arg(long, value_name = "TEXT", conflicts_with = "text")]
    title: Option<String>,
    /// Folder of pictures (with all folders in it)
    #[arg(long, value_name = "DIR")]
    pictures: PathBuf,
    /// Model that finds pictures by their captions: a CLIP or a LiT [default: the built-in one for
    /// drawings]
    #[arg(long, value_name = "MODEL")]
    by: Option<String>,
    /// Pictures to ask for; without it as many as the model likes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    images: Option<u64>,
    /// Write the article to a file, with paths of pictures relative to it
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A JSON object a line: {"line", "text"}, and "image", "caption" and "candidates" of a picture
    /// behind it
    #[arg(long)]
    jsonl: bool,
}

#[derive(Serialize)]
struct Paragraph<'a> {
    line: usize,
    text: &'a str,
    #[serde(flatten)]
    picture: Option<Shown<'a>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    image: &'a str,
    caption: &'a str,
    candidates: Vec<&'a str>,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let given = args.text.as_deref().map(read).transpose()?;
    if args.title.as_ref().is_some_and(|title| title.trim().is_empty()) {
        return Err(Failure::usage("the title is empty; give one with --title TEXT"));
    }
    let source = session::find(global, &args.model)?;
    let tokenizer = source.language_tokenizer();
    let processor = source.processor()?;
    let words = |text: &String| tokenizer.as_ref().map_or(0, |t| t.encode(text, true).len());
    let read = given.as_ref().map_or(0, words);
    let work = Work { texts: TEXTS, read, written: WRITTEN, pictures: CANDIDATES };
    let session = source.open(global, work)?;
    let Model::XComposer(model) = &session.opened.model else {
        return Err(session.unsuitable("composing", "an InternLM-XComposer"));
    };
    let tokenizer = session.fitting(tokenizer?)?;
    let composer = Composer::new(&**model, &tokenizer, Some(interrupt::flag()))?;
    interrupt::watch();
    let by = ModelArgs {
        model: args.by.clone(),
        quant: None,
        lora: Vec::new(),
        base: None,
        ..args.model.clone()
    };
    let mut folder = Folder::of(global, &by, &args.pictures, &processor, &**model)?;
    let article = match (&given, &args.title) {
        (Some(text), _) => Article::new(text),
        (None, title) => composer.write(title.as_deref().unwrap_or_default().trim())?,
    };
    go_on()?;
    if article.lines().is_empty() {
        return Err(Failure::runtime("the model wrote nothing for this title; give another one"));
    }
    let images = args.images.map(|n| (n as usize).min(article.lines().len()));
    let (spots, reply) = composer.spots(&article, images)?;
    go_on()?;
    if spots.is_empty() {
        say(global, &format!("no picture is placed, as the reply names no line: {reply:?}"));
    }
    let captions = composer.captions(&article, &spots)?;
    go_on()?;
    let placed = composer.place(&article, &captions, &mut folder)?;
    if placed.len() < spots.len() {
        let (all, used) = (spots.len(), placed.len());
        say(global, &format!("pictures for {used} of {all} places; the folder has no more"));
    }
    show(args, &article, &placed, &folder.paths)?;
    if folder.has_unread { Err(Failure::input_reported()) } else { Ok(()) }
}

/// The article and its pictures as they were asked for.
fn show(
    args: &Args,
    article: &Article,
    placed: &[Placed],
    paths: &[String],
) -> Result<(), Failure> {
    let pictures: BTreeMap<usize, &Placed> = placed.iter().map(|p| (p.caption.line, p)).collect();
    let mut out = Output::new();
    if args.jsonl {
        for (line, text) in article.lines().iter().enumerate() {
            let picture = pictures.get(&line).map(|&p| Shown {
                image: &paths[p.picture],
                caption: &p.caption.text,
                candidates: p.candidates.iter().map(|i| paths[*i].as_str()).collect(),
            });
            out.json(&Paragraph { line, text, picture })?;
        }
    }
    let dir = args.output.as_ref().map(|file| file.parent().unwrap_or(Path::new("")));
    let picture = |line| {
        let p = pictures.get(&line)?;
        Some(markdown::picture(&p.caption.text, Path::new(&paths[p.picture]), dir))
    };
    let lines = article.lines().iter().enumerate();
    let blocks: Vec<String> =
        lines.flat_map(|(i, text)| [Some(text.clone()), picture(i)]).flatten().collect();
    let text = blocks.join("\n\n") + "\n";
    match &args.output {
        Some(file) => write_file(file, text.as_bytes())?,
        None if !args.jsonl => out.written(&text)?,
        None => {}
    }
    out.flush()
}

/// The text of a file, which must have words.
fn read(path: &Path) -> Result<String, Failure> {
    let wrong = |why: String| Failure::input(format!("{}: {why}", path.display()));
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path);
        file.and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|e| wrong(format!("cannot read the article: {e}")))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("more than {MOST_BYTES} bytes; give a shorter article")));
    }
    let text =
        String::from_utf8(bytes).map_err(|e| wrong(format!("{e}; give a text file in UTF-8")))?;
    if text.trim().is_empty() {
        return Err(wrong("no text; give an article, or --title TEXT to have one written".into()));
    }
    Ok(text)
}

/// The pictures of a folder, with features to find them by.
struct Folder<'a> {
    finder: Session,
    talker: &'a dyn Talker,
    processor: &'a Processor,
    paths: Vec<String>,
    /// One row of length 1 for each.
    features: Vec<f32>,
    has_unread: bool,
}

impl<'a> Folder<'a> {
    fn of(
        global: &Global,
        by: &ModelArgs,
        dir: &Path,
        processor: &'a Processor,
        talker: &'a dyn Talker,
    ) -> Result<Self, Failure> {
        let args = PictureArgs {
            images: vec![dir.to_owned()],
            batch_size: 8,
            upright: false,
            fast_decode: false,
        };
        let source = session::find(global, by)?;
        let mut all = Pictures::start(&args, source.processor()?)?;
        let work = Work { texts: 1, read: session::CLIP_CONTEXT, ..args.work() };
        let finder = source.open(global, work)?;
        finder.temperature("finding pictures by captions", "a CLIP or a LiT")?;
        let mut folder = Self {
            finder,
            talker,
            processor,
            paths: Vec::new(),
            features: Vec::new(),
            has_unread: false,
        };
        let mut progress = Progress::new(global, "pictures", None, false);
        while let Some(batch) = all.next_batch()? {
            if let Some(pixels) = &batch.pixels {
                let features = no_grad(|| folder.finder.embed_images(pixels))?;
                folder.features.extend_from_slice(features.values());
            }
            for picture in &batch.pictures {
                match &picture.error {
                    None => folder.paths.push(picture.name.clone()),
                    Some(error) => {
                        folder.has_unread = true;
                        tell(&format!("{}: {error}", picture.name));
                    }
                }
            }
            if folder.paths.len() > MOST_PICTURES {
                return Err(Failure::input(format!(
                    "{}: more than {MOST_PICTURES} pictures; give a smaller folder",
                    dir.display()
                )));
            }
            progress.add(batch.pictures.len());
        }
        if folder.paths.is_empty() {
            let what = format!("{}: no pictures to place; give a folder of them", dir.display());
            return Err(Failure::input(what));
        }
        Ok(folder)
    }
}

impl Album for Folder<'_> {
    type Error = Failure;

    fn find(&mut self, caption: &str, most: usize, but: &[usize]) -> Result<Vec<usize>, Failure> {
        go_on()?;
        let caption = [caption.to_owned()];
        let text =
            no_grad(|| Ok::<_, Failure>(self.finder.encode_texts(&caption)?.l2_normalise()?))?;
        let rows = self.features.chunks_exact(text.shape().last_axis().max(1));
        let cosine = |row: &[f32]| row.iter().zip(text.values()).map(|(a, b)| a * b).sum::<f32>();
        let mut found: Vec<(usize, f32)> = rows.map(cosine).enumerate().collect();
        found.retain(|(picture, _)| !but.contains(picture));
        // Of equals the first one.
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(found.into_iter().take(most).map(|(picture, _)| picture).collect())
    }

    fn show(&mut self, picture: usize) -> Result<Tensor, Failure> {
        let path = &self.paths[picture];
        let (pixels, _) = pictures::one(Path::new(path), FilmArgs::default(), self.processor)?;
        let mut seen = no_grad(|| self.talker.pictures(&pixels))?;
        Ok(seen.swap_remove(0))
    }
}

/// That Ctrl-C was not pressed.
fn go_on() -> Result<(), Failure> {
    if interrupt::asked() { Err(Failure::interrupted()) } else { Ok(()) }
}

/// Says what became of the pictures.
fn say(global: &Global, text: &str) {
    if global.has_log() {
        tell(text);
    }
}

fn tell(text: &str) {
    // Nobody is left to be told of a terminal that is gone.
    let _ = writeln!(stderr(), "{text}");
}
