//! Examples whose pictures are near to what is asked about.
//!
//! Yang et al. 2021, "An Empirical Study of GPT-3 for Few-Shot Knowledge-Based VQA", arXiv:2109.05014,
//! chooses examples so; Alayrac et al. 2022, arXiv:2204.14198, calls it RICES and shows the nearest
//! one last.

use crate::failure::Failure;
use crate::global::Global;
use crate::inputs::Inputs;
use crate::pictures::{self, Reading};
use crate::progress::Progress;
use crate::retrieval::{BATCH, Index};
use crate::session::{self, ModelArgs};
use crate::shots::Example;
use crate::unread;
use ocelli_data::image::Processor;
use ocelli_models::Work;
use std::path::{Path, PathBuf};

/// Pictures of examples, and how a picture is read that they are compared with.
pub(crate) struct Nearest {
    index: Index,
    processor: Processor,
    reading: Reading,
    count: usize,
}

impl Nearest {
    /// Looks at the pictures of all `examples` with `model`, the built-in one if none is named. Of them
    /// `count` will be asked for at a time.
    pub(crate) fn open(
        global: &Global,
        (count, model): (usize, Option<&str>),
        examples: &[Example],
        reading: Reading,
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
        let work = Work { pictures: images.len().min(BATCH), ..Work::default() };
        let looking = (source.open(global, work)?, processor.clone());
        let mut progress = Progress::new(global, "examples", Some(images.len() as u64), true);
        let index = Index::of(
            &mut progress,
            looking,
            (Inputs::literal(images), reading),
            &mut |name, error| {
                Err(Failure::input(format!("--shots: {}", unread::line(name, error))))
            },
        )?;
        Ok(Self { index, processor, reading: reading.first_frame(), count })
    }

    /// The examples nearest to a picture, the nearest last.
    pub(crate) fn to(&self, picture: &Path) -> Result<Vec<usize>, Failure> {
        let (pixels, _) = pictures::one(picture, self.reading, &self.processor)?;
        let query = self.index.embedded(&pixels)?;
        let mut found = self.index.nearest(query.values(), self.count);
        found.reverse();
        Ok(found)
    }
}
