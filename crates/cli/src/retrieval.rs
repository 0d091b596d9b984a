//! Pictures found by their features: those whose cosines with a question are the largest.

use crate::failure::Failure;
use crate::inputs::Inputs;
use crate::interrupt;
use crate::pictures::{Pictures, Reading};
use crate::progress::Progress;
use crate::session::Session;
use ocelli_data::image::Processor;
use ocelli_tensor::{Tensor, no_grad};

/// Pictures that are chosen from, at most.
pub(crate) const MOST: usize = 100_000;
/// Pictures that are seen at once.
pub(crate) const BATCH: usize = 8;

/// Pictures, and the model that compares them.
pub(crate) struct Index {
    pub(crate) session: Session,
    /// The paths of those that were read.
    pub(crate) names: Vec<String>,
    /// Of length 1, `[names, width]`.
    vectors: Vec<f32>,
}

impl Index {
    /// Looks at pictures, of videos at the first frame. `unread` is told the name of each that cannot be
    /// read, and why, and may end it.
    ///
    /// # Errors
    /// Those of `unread` and of the model; if Ctrl-C was pressed, or there are more than [`MOST`].
    pub(crate) fn of(
        progress: &mut Progress,
        (session, processor): (Session, Processor),
        (inputs, reading): (Inputs, Reading),
        unread: &mut dyn FnMut(&str, &str) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let mut pictures = Pictures::of(inputs, BATCH, reading.first_frame(), processor)?;
        interrupt::watch();
        let mut index = Self { session, names: Vec::new(), vectors: Vec::new() };
        while let Some(batch) = pictures.next_batch()? {
            for picture in &batch.pictures {
                match &picture.error {
                    Some(error) => unread(&picture.name, error)?,
                    None => index.names.push(picture.name.clone()),
                }
            }
            if index.names.len() > MOST {
                let what = format!("more than {MOST} pictures to choose from; give fewer");
                return Err(Failure::input(what));
            }
            if let Some(pixels) = &batch.pixels {
                let vectors = index.embedded(pixels)?;
                index.vectors.extend_from_slice(vectors.values());
            }
            progress.add(batch.pictures.len());
        }
        Ok(index)
    }

    /// The vectors of pictures `[n, 3, img_h, img_w]`, or videos of one frame
    /// `[n, 1, 3, img_h, img_w]`, `[n, width]`.
    pub(crate) fn embedded(&self, pixels: &Tensor) -> Result<Tensor, Failure> {
        let mut shape = pixels.shape().to_vec();
        if shape.len() > 4 {
            shape.remove(1);
        }
        no_grad(|| self.session.embed_images(&pixels.reshape(&shape)?))
    }

    /// The numbers of the `count` pictures nearest to `query`, of the width of the vectors, the nearest
    /// first; of equals the first.
    pub(crate) fn nearest(&self, query: &[f32], count: usize) -> Vec<usize> {
        nearest(&self.vectors, query, count)
    }
}

/// Numbers of the `count` rows of `vectors` that have the largest dot products with `query`, the largest
/// first; of equals the first row counts as nearer.
fn nearest(vectors: &[f32], query: &[f32], count: usize) -> Vec<usize> {
    let dot = |row: &[f32]| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
    let cosines: Vec<f32> = vectors.chunks_exact(query.len().max(1)).map(dot).collect();
    let mut order: Vec<usize> = (0..cosines.len()).collect();
    order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a])); // stable
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first() {
        let vectors = [0.6, 0.8, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!(nearest(&vectors, &[1.0, 0.0], 3), [1, 3, 0]);
        assert_eq!(nearest(&vectors, &[0.0, 1.0], 2), [2, 0]);
        assert_eq!(nearest(&vectors, &[0.0, 1.0], 9), [2, 0, 1, 3]);
    }
}
