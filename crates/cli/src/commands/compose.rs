//! `ocelli compose`: an article with pictures where they belong.

use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::markdown;
use crate::memory::Bound;
use crate::output::{Output, check_writable, harmless, write_file};
use crate::pictures::{self, Reading};
use crate::progress::Progress;
use crate::retrieval::{BATCH, Index};
use crate::session::{self, ModelArgs, Source};
use crate::unread;
use ocelli_data::image::Processor;
use ocelli_models::systems::composition::{
    Album, Article, CANDIDATES, Composer, Placed, spotting_prompt,
};
use ocelli_models::systems::talker::Talker;
use ocelli_models::{Model, Work};
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{Read, Write, stderr, stdin};
use std::path::{Path, PathBuf};

/// Bytes of an article that are read.
const MOST_BYTES: u64 = 1 << 20;
/// Texts side by side, tokens of an article that the model writes and of the places in it, and pictures
/// that are seen before the candidates if no number is asked for: for the need of memory.
const TEXTS: usize = 5;
const WRITTEN: usize = 1000;
const PLACES: usize = 300;
const USUAL_IMAGES: usize = 4;

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
    /// Pictures to choose from: a folder (with all folders in it), a file, a pattern such as '*.jpg',
    /// or - for paths on standard input, one a line
    #[arg(long, value_name = "IMG")]
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
    check(args)?;
    let given = args.text.as_deref().map(read).transpose()?.map(|text| Article::new(&text));
    let by = session::find(global, &ModelArgs::plain(args.by.as_deref()))?;
    let source = session::find(global, &args.model)?;
    let tokenizer = source.language_tokenizer();
    let processor = source.processor()?;
    let images = |lines: usize| args.images.map(|n| lines.min(usize::try_from(n).unwrap_or(lines)));
    // A line has a token at least.
    let lines = given.as_ref().map_or(WRITTEN, |article| article.lines().len());
    let read = given.as_ref().map_or(WRITTEN, |article| {
        let asked = spotting_prompt(article, images(lines));
        tokenizer.as_ref().map_or(0, |t| t.encode(&asked, true).len())
    });
    let work = |images| Work { texts: TEXTS, read, written: PLACES, pictures: CANDIDATES + images };
    let most = images(lines).unwrap_or(USUAL_IMAGES.min(lines));
    let bound = Bound { option: "--images", most, work: &work };
    let session = source.open_within(global, &bound)?;
    let Model::XComposer(model) = &session.opened.model else {
        return Err(session.unsuitable("composing", "an InternLM-XComposer"));
    };
    let tokenizer = session.fitting(tokenizer?)?;
    let composer = Composer::new(&**model, &tokenizer, Some(interrupt::flag()))?;
    interrupt::watch();
    let mut folder = Folder::of(global, by, &args.pictures, &processor, &**model)?;
    let article = match (given, &args.title) {
        (Some(article), _) => article,
        (None, title) => written(args, &composer, title.as_deref().unwrap_or_default().trim())?,
    };
    let mut placed = Vec::new();
    let images = images(article.lines().len());
    let done = illustrate(global, (&composer, &article, images), &mut folder, &mut placed);
    if let Err(failure) = done {
        if placed.is_empty() && args.text.is_some() {
            return Err(failure);
        }
        show(args, &article, &placed, &folder.index.names)?;
        let count = placed.len();
        return Err(failure.with(&format!("the article is kept; pictures placed so far: {count}")));
    }
    show(args, &article, &placed, &folder.index.names)?;
    if folder.has_unread { Err(Failure::input_reported()) } else { Ok(()) }
}

/// What can be told before a model is there.
fn check(args: &Args) -> Result<(), Failure> {
    if args.title.as_ref().is_some_and(|title| title.trim().is_empty()) {
        return Err(Failure::usage("the title is empty; give one with --title TEXT"));
    }
    if let Some(file) = &args.output {
        check_writable(file)?;
    }
    let pictures = &args.pictures;
    if Inputs::is_list(pictures) {
        if args.text.as_ref().is_some_and(|text| Inputs::is_list(text)) {
            let what =
                "the article and --pictures are both on standard input; give one by its path";
            return Err(Failure::usage(what));
        }
    } else if !Inputs::is_pattern(pictures) && !pictures.exists() {
        let what = "no such file or folder; check the spelling";
        return Err(Failure::input(format!("--pictures {}: {what}", pictures.display())));
    }
    Ok(())
}

/// An article that the model writes, which nothing that goes wrong later takes away.
fn written(args: &Args, composer: &Composer, title: &str) -> Result<Article, Failure> {
    let article = composer.write(title)?;
    if article.lines().is_empty() {
        go_on()?;
        return Err(Failure::runtime("the model wrote nothing for this title; give another one"));
    }
    let text = article.lines().join("\n\n") + "\n";
    match &args.output {
        Some(file) => write_file(file, text.as_bytes())?,
        None => tell(&text),
    }
    Ok(article)
}

/// Places pictures behind lines of the article.
fn illustrate(
    global: &Global,
    (composer, article, images): (&Composer, &Article, Option<usize>),
    folder: &mut Folder,
    placed: &mut Vec<Placed>,
) -> Result<(), Failure> {
    go_on()?;
    let (spots, reply) = composer.spots(article, images)?;
    go_on()?;
    if spots.is_empty() {
        say(global, &format!("no picture is placed, as the reply names no line: {reply:?}"));
    }
    let captions = composer.captions(article, &spots)?;
    go_on()?;
    composer.place(article, &captions, folder, placed)?;
    if placed.len() < spots.len() {
        let (all, used) = (spots.len(), placed.len());
        say(global, &format!("pictures for {used} of {all} places; the folder has no more"));
    }
    Ok(())
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

/// Pictures that are found by captions.
struct Folder<'a> {
    index: Index,
    talker: &'a dyn Talker,
    processor: &'a Processor,
    has_unread: bool,
}

impl<'a> Folder<'a> {
    fn of(
        global: &Global,
        by: Source,
        pictures: &Path,
        processor: &'a Processor,
        talker: &'a dyn Talker,
    ) -> Result<Self, Failure> {
        let own_processor = by.processor()?;
        let work = Work { texts: 1, read: session::CLIP_CONTEXT, written: 0, pictures: BATCH };
        let finder = by.open(global, work)?;
        finder.temperature("finding pictures by captions", "a CLIP or a LiT")?;
        let mut has_unread = false;
        let mut progress = Progress::new(global, "pictures", None, false);
        let index = Index::of(
            &mut progress,
            (finder, own_processor),
            (Inputs::new(vec![pictures.to_owned()]), Reading::default()),
            &mut |name, error| {
                has_unread = true;
                tell(&unread::line(name, error));
                Ok(())
            },
        )?;
        if index.names.is_empty() {
            let what = format!("{}: no pictures to place; give others", pictures.display());
            return Err(Failure::input(what));
        }
        Ok(Self { index, talker, processor, has_unread })
    }
}

impl Album for Folder<'_> {
    type Error = Failure;

    fn find(&mut self, caption: &str, most: usize, but: &[usize]) -> Result<Vec<usize>, Failure> {
        go_on()?;
        let caption = [caption.to_owned()];
        let encoded =
            || Ok::<_, Failure>(self.index.session.encode_texts(&caption)?.l2_normalise()?);
        let text = no_grad(encoded)?;
        let mut found = self.index.nearest(text.values(), most + but.len());
        found.retain(|picture| !but.contains(picture));
        found.truncate(most);
        Ok(found)
    }

    fn show(&mut self, picture: usize) -> Result<Tensor, Failure> {
        let path = Path::new(&self.index.names[picture]);
        let (pixels, _) = pictures::one(path, Reading::default(), self.processor)?;
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
    let _ = writeln!(stderr(), "{}", harmless(text));
}
