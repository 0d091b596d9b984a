//! Examples whose pictures are near to what is asked about.
//!
//! Yang et al. 2021, "An Empirical Study of GPT-3 for Few-Shot Knowledge-Based VQA", arXiv:2109.05014,
//! chooses examples so; Alayrac et al. 2022, arXiv:2204.14198, calls it RICES and shows the nearest
//! one last.

use crate::failure::Failure;
use crate::films::FilmArgs;
use crate::global::Global;
use crate::interrupt;
use crate::pictures::{self, PictureArgs, Pictures};
use crate::progress::Progress;
use crate::session::{self, ModelArgs, Session};
use crate::shots::Example;
use ocelli_data::image::Processor;
use ocelli_tensor::{Tensor, no_grad};
use std::path::{Path, PathBuf};

/// Pictures that are seen at once.
const BATCH: usize = 8;
/// Of a film the first frame tells what it is near to.
const FIRST_FRAME: FilmArgs = FilmArgs { frames: Some(1) };

/// Pictures of examples, and the model that compares them.
pub(crate) struct Nearest {
    session: Session,
    processor: Processor,
    count: usize,
    /// Of length 1, `[examples, width]`.
    vectors: Tensor,
}

impl Nearest {
    /// Looks at the pictures of all `examples` with `model`, the built-in one if none is named. Of them
    /// `count` will be asked for at a time.
    pub(crate) fn open(
        global: &Global,
        (count, model): (usize, Option<&str>),
        examples: &[Example],
    ) -> Result<Self, Failure> {
        let image = |(i, example): (usize, &Example)| {
            example.image.clone().ok_or_else(|| {
                let what = "has no \"image\", which --nearest needs of every example";
                Failure::input(format!("--shots: example {} {what}", i + 1))
            })
        };
        let images: Vec<PathBuf> =
            examples.iter().enumerate().map(image).collect::<Result<_, _>>()?;
        let source = session::find(global, &ModelArgs::plain(model))?;
        let processor = source.processor()?;
        let args = PictureArgs { images, batch_size: BATCH, upright: false, fast_decode: false };
        let session = source.open(global, args.work())?;
        let mut pictures = Pictures::start_films(&args, FIRST_FRAME, processor.clone())?;
        interrupt::watch();
        let mut progress = Progress::new(global, "examples", Some(examples.len() as u64), true);
        let mut vectors = Vec::new();
        while let Some(batch) = pictures.next_batch()? {
            if let Some(error) = batch.pictures.iter().find_map(|picture| picture.error.as_ref()) {
                return Err(Failure::input(format!("--shots: {error}")));
            }
            if let Some(pixels) = &batch.pixels {
                vectors.push(embedded(&session, pixels)?);
            }
            progress.add(batch.pictures.len());
        }
        let vectors = Tensor::cat(&vectors.iter().collect::<Vec<_>>(), 0)?;
        if vectors.shape().rows() != examples.len() {
            let what = "an \"image\" names several pictures; name one file in each example";
            return Err(Failure::input(format!("--shots: {what}")));
        }
        Ok(Self { session, processor, count, vectors })
    }

    /// The examples nearest to a picture, the nearest last.
    pub(crate) fn to(&self, picture: &Path) -> Result<Vec<usize>, Failure> {
        let (pixels, _) = pictures::one(picture, FIRST_FRAME, &self.processor)?;
        let query = embedded(&self.session, &pixels)?;
        Ok(nearest(self.vectors.values(), query.values(), self.count))
    }
}

/// The vectors of first frames `[pictures, 1, 3, img_h, img_w]`, `[pictures, width]`.
fn embedded(session: &Session, pixels: &Tensor) -> Result<Tensor, Failure> {
    let mut shape = pixels.shape().to_vec();
    shape.remove(1);
    let pixels = pixels.reshape(&shape)?;
    no_grad(|| session.embed_images(&pixels))
}

/// Numbers of the `count` rows of `vectors` that have the largest dot products with `query`, the largest
/// last; of equals the first row counts as nearer.
fn nearest(vectors: &[f32], query: &[f32], count: usize) -> Vec<usize> {
    let dot = |row: &[f32]| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let cosines: Vec<f32> = vectors.chunks_exact(query.len()).map(dot).collect();
    let mut order: Vec<usize> = (0..cosines.len()).collect();
    order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a])); // stable
    order.truncate(count);
    order.reverse();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_last() {
        let vectors = [0.6, 0.8, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!(nearest(&vectors, &[1.0, 0.0], 3), [0, 3, 1]);
        assert_eq!(nearest(&vectors, &[0.0, 1.0], 2), [0, 2]);
        assert_eq!(nearest(&vectors, &[0.0, 1.0], 9), [3, 1, 0, 2]);
    }
}
