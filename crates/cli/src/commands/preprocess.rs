//! `ocelli preprocess`: pictures as the model sees them.

use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::pictures::{PictureArgs, Pictures};
use crate::progress::Progress;
use crate::rows_file::RowsFile;
use crate::session::{self, ModelArgs};
use crate::unread::UnreadList;
use std::path::PathBuf;

/// Write pictures as the numbers that a model sees
///
/// Needs the model's configuration, not its weights.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli preprocess -m clip/ photo.jpg -o pixels.safetensors
  ocelli preprocess -m google/vit-base-patch16-224 photos/ -o pixels.safetensors

The file holds `pixel_values`, f32 [n, 3, height, width], in the order of the inputs. If a picture
cannot be read, no file is written and the exit code is 3.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    pictures: PictureArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    args.pictures.check_given()?;
    let source = session::find(global, &args.model)?;
    let mut pictures = Pictures::start(&args.pictures, source.processor()?)?;
    interrupt::watch();
    let total = Inputs::count(&args.pictures.images);
    let mut progress = Progress::new(global, "pictures", total, false);
    let mut file = RowsFile::create(&args.output, "pixel_values")?;
    let mut unread = UnreadList::default();
    while let Some(batch) = pictures.next_batch()? {
        unread.note(&batch);
        if let Some(pixels) = &batch.pixels
            && unread.is_empty()
        {
            file.add(pixels)?;
        }
        progress.add(batch.pictures.len());
    }
    unread.check(&args.output)?;
    file.finish()
}
