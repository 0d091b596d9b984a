//! Batches of pictures and their targets, made ahead on background threads.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    augment::AugmentConfig,
    batches::Batches,
    error::{DatasetError, Result},
    mix::Dataset,
    order::{DataState, Sampler},
    worker::Maker,
};
use crate::image::Processor;

/// How pictures become numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum View {
    /// Randomly changed squares; a caption of a sample is drawn anew in each epoch.
    Train {
        /// Side in pixels.
        size: usize,
        /// The random changes.
        augment: AugmentConfig,
        /// Subtracted from channels in [0, 1].
        mean: [f32; 3],
        /// Divides them after that.
        std: [f32; 3],
    },
    /// As a model sees pictures in use; the first caption of a sample.
    Eval(Processor),
    /// Not at all, for models that know them by their numbers: pictures are not read and `pixels` is
    /// empty. A caption of a sample is drawn anew in each epoch.
    None,
}

/// Decoded pictures kept in memory: `[data.cache]` of a recipe. Kept or not, a picture is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Longer side in pixels to which training pictures are shrunk, and drawings drawn, before they are
    /// changed: half as much again as the model sees serves well.
    pub side: usize,
    /// Memory for them in bytes; what does not fit is decoded each time.
    pub bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { side: 96, bytes: 1 << 30 }
    }
}

/// What to do about a sample that cannot be read or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OnBroken {
    /// Stop.
    Error,
    /// Leave it out and go on, until more than `limit` were left out in the whole run.
    Skip {
        /// How many.
        limit: u64,
    },
}

/// What the samples of a batch come with; one that lacks it counts as broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Targets {
    /// A caption each.
    pub captions: bool,
    /// The index of a class each.
    pub labels: bool,
}

/// What a loader does with a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderConfig {
    /// Samples in a batch.
    pub batch_size: usize,
    /// Background threads, at least 1. The batches do not depend on it.
    pub threads: usize,
    /// Of the order and of all random changes.
    pub seed: u64,
    /// Whether each epoch has its own random order.
    pub shuffle: bool,
    /// Whether the last batch of an epoch is dropped when it is not full.
    pub drop_last: bool,
    /// Epochs to go through from the first on; without end when absent.
    pub epochs: Option<u64>,
    /// What to do about broken samples.
    pub on_broken: OnBroken,
    /// What every sample must have besides a picture.
    pub targets: Targets,
    /// How pictures become numbers.
    pub view: View,
    /// Decoded pictures kept in memory; without it pictures are decoded at full size every time.
    pub cache: Option<CacheConfig>,
}

/// A batch of `n` samples, or a part of one. `n` is the batch size, less at the end of an epoch and
/// where broken samples were left out, never 0; but the last of several parts may have lost all of its
/// samples.
#[derive(Debug)]
pub struct Batch {
    /// `[n, 3, img_h, img_w]`, normalised.
    pub pixels: Vec<f32>,
    /// `img_h` and `img_w`.
    pub size: (usize, usize),
    /// `[n]`; empty unless captions are asked for.
    pub captions: Vec<String>,
    /// `[n]`, indices of classes; empty unless labels are asked for.
    pub labels: Vec<u32>,
    /// `[n]`, names of the samples in their sources.
    pub keys: Vec<String>,
    /// `[n]`, numbers of the samples in the dataset.
    pub indices: Vec<usize>,
    /// The epoch the samples belong to, from 0.
    pub epoch: u64,
    /// What was left out of this batch, and of batches before it of which nothing was left; and why.
    pub skipped: Vec<DatasetError>,
    /// Whether the batch is complete with this part.
    pub ends_batch: bool,
    /// The position after this batch; batches from there are the same as those that follow here.
    pub state_after: DataState,
}

/// Makes batches of a dataset. Decoded pictures stay in memory from one run of [`Loader::batches`] to
/// the next.
#[derive(Debug)]
pub struct Loader {
    maker: Arc<Maker>,
    sampler: Sampler,
}

impl Loader {
    /// Checks the settings; nothing is read yet.
    ///
    /// # Errors
    /// When a setting is out of range, pictures would have different sizes, or an epoch would have no
    /// batch.
    pub fn new(dataset: Arc<Dataset>, config: LoaderConfig) -> Result<Self> {
        let wrong = |field, found, expected| Err(DatasetError::Config { field, found, expected });
        if config.batch_size == 0 {
            return wrong("batch_size", "0".to_owned(), "1 or more");
        }
        if config.threads == 0 {
            return wrong("threads", "0".to_owned(), "1 or more");
        }
        if let Some(cache) = config.cache
            && !(1..=4096).contains(&cache.side)
        {
            return wrong("cache.side", cache.side.to_string(), "1 to 4096 pixels");
        }
        match &config.view {
            View::Train { augment, size, .. } => {
                augment.check()?;
                if !(1..=4096).contains(size) {
                    return wrong("image_size", size.to_string(), "1 to 4096 pixels");
                }
            }
            View::Eval(processor) if processor.size().is_none() => {
                let found = format!("{:?} without a crop", processor.resize);
                return wrong("resize", found, "one size for all pictures of a batch");
            }
            View::Eval(_) | View::None => {}
        }
        let sampler = Sampler::new(&dataset, config.seed, config.shuffle)?;
        if sampler.epoch_len() == 0 || config.drop_last && sampler.epoch_len() < config.batch_size {
            let found = config.batch_size.to_string();
            return wrong("batch_size", found, "at most the samples of an epoch with drop_last");
        }
        Ok(Self { maker: Arc::new(Maker::new(dataset, config)), sampler })
    }

    /// The position before the first sample.
    pub fn start(&self) -> DataState {
        self.sampler.start()
    }

    /// Number of batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        let (samples, size) = (self.sampler.epoch_len(), self.maker.config().batch_size);
        if self.maker.config().drop_last { samples / size } else { samples.div_ceil(size) }
    }

    /// The dataset.
    pub fn dataset(&self) -> &Dataset {
        self.maker.dataset()
    }

    /// Memory in bytes that decoded pictures take now.
    pub fn cached_bytes(&self) -> u64 {
        self.maker.cached_bytes()
    }

    /// Starts the threads; batches come in order from `state` on.
    ///
    /// # Errors
    /// When the position was saved with another seed or other data, or no thread can be started.
    pub fn batches(&self, state: &DataState) -> Result<Batches> {
        self.parts(state, self.maker.config().batch_size)
    }

    /// The same batches in parts of at most `part_size` samples: only these are in memory. The position
    /// after a part is one to go on from where the part ends its batch.
    ///
    /// # Errors
    /// As for [`Loader::batches`].
    pub fn parts(&self, state: &DataState, part_size: usize) -> Result<Batches> {
        self.sampler.check(state)?;
        let (maker, sampler) = (Arc::clone(&self.maker), self.sampler.clone());
        Batches::start(maker, sampler, state, part_size.max(1))
    }
}
