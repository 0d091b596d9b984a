//! `ocelli embed`: pictures or texts as vectors of length 1.

use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::output::{Output, Unread};
use crate::pictures::{PictureArgs, Pictures};
use crate::progress::Progress;
use crate::rows_file::RowsFile;
use crate::session::{self, ModelArgs, Session};
use crate::unread::UnreadList;
use ocelli_models::Work;
use ocelli_tensor::no_grad;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Turn pictures or texts into vectors
///
/// Each vector has length 1, so that a dot product is a cosine. A ViT gives its pooled features.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli embed -m clip/ photos/ -o photos.safetensors
  ocelli embed -m clip/ --text 'a cat' --text 'two dogs' -o texts.safetensors
  ocelli embed -m vit/ photo.jpg | jq -c .embedding

The file holds `embeddings`, f32 [n, width], in the order of the inputs. With -o a picture that
cannot be read ends in exit code 3 and no file; without it the picture's line has an error.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A text instead of pictures; repeat it for several
    #[arg(long, value_name = "TEXT", conflicts_with = "images")]
    text: Vec<String>,
    /// Write a safetensors file instead of a JSON object a line
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    pictures: PictureArgs,
}

#[derive(Serialize)]
struct ImageLine<'a> {
    image: &'a str,
    embedding: &'a [f32],
}

#[derive(Serialize)]
struct TextLine<'a> {
    text: &'a str,
    embedding: &'a [f32],
}

/// Texts that are encoded at once.
const TEXTS_AT_ONCE: usize = 64;

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    if !args.text.is_empty() {
        let texts_at_once = args.text.len().min(TEXTS_AT_ONCE);
        let work = Work { texts: texts_at_once, read: session::CLIP_CONTEXT, ..Work::default() };
        let session = session::find(global, &args.model)?.open(global, work)?;
        interrupt::watch();
        return texts(global, &session, args);
    }
    args.pictures.check_given()?;
    let source = session::find(global, &args.model)?;
    let pictures = Pictures::start(&args.pictures, source.processor()?)?;
    let session = source.open(global, args.pictures.work())?;
    interrupt::watch();
    match &args.output {
        Some(file) => images_to_file(global, &session, args, pictures, file),
        None => images_to_lines(global, &session, args, pictures),
    }
}

fn texts(global: &Global, session: &Session, args: &Args) -> Result<(), Failure> {
    let mut progress =
        Progress::new(global, "texts", Some(args.text.len() as u64), args.output.is_none());
    let mut file = match &args.output {
        Some(path) => Some(RowsFile::create(path, "embeddings")?),
        None => None,
    };
    let mut out = Output::new();
    for texts in args.text.chunks(TEXTS_AT_ONCE) {
        if interrupt::asked() {
            return Err(Failure::interrupted());
        }
        let vectors = no_grad(|| Ok::<_, Failure>(session.encode_texts(texts)?.l2_normalise()?))?;
        if let Some(file) = &mut file {
            file.add(&vectors)?;
        } else {
            for (text, embedding) in
                texts.iter().zip(vectors.values().chunks_exact(vectors.shape().last_axis()))
            {
                out.json(&TextLine { text, embedding })?;
            }
            out.flush()?;
        }
        progress.add(texts.len());
    }
    file.map_or(Ok(()), RowsFile::finish)
}

fn images_to_file(
    global: &Global,
    session: &Session,
    args: &Args,
    mut pictures: Pictures,
    path: &Path,
) -> Result<(), Failure> {
    let total = Inputs::count(&args.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, false);
    let mut file = RowsFile::create(path, "embeddings")?;
    let mut unread = UnreadList::default();
    while let Some(batch) = pictures.next_batch()? {
        unread.note(&batch);
        if let Some(pixels) = &batch.pixels
            && unread.is_empty()
        {
            file.add(&no_grad(|| session.embed_images(pixels))?)?;
        }
        progress.add(batch.pictures.len());
    }
    unread.check(path)?;
    file.finish()
}

fn images_to_lines(
    global: &Global,
    session: &Session,
    args: &Args,
    mut pictures: Pictures,
) -> Result<(), Failure> {
    let total = Inputs::count(&args.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, true);
    let mut out = Output::new();
    let mut unread = false;
    while let Some(batch) = pictures.next_batch()? {
        let vectors = match &batch.pixels {
            Some(pixels) => Some(no_grad(|| session.embed_images(pixels))?),
            None => None,
        };
        let mut rows = vectors.iter().flat_map(|v| v.values().chunks_exact(v.shape().last_axis()));
        for picture in &batch.pictures {
            let image = &picture.name;
            if let Some(error) = &picture.error {
                unread = true;
                out.json(&Unread { image, error })?;
            } else {
                out.json(&ImageLine { image, embedding: rows.next().unwrap_or_default() })?;
            }
        }
        out.flush()?;
        progress.add(batch.pictures.len());
    }
    if unread { Err(Failure::input_reported()) } else { Ok(()) }
}
