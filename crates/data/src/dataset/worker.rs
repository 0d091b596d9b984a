//! How a batch is made: read, decode, change, normalise.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    augment::Scratch,
    draw::{Draw, Purpose},
    error::{DatasetError, Result},
    loader::{Batch, LoaderConfig, OnBroken, View},
    mix::Dataset,
    order::DataState,
    small::Small,
    source::Annotation,
};
use crate::image::{Limits, Processor, decode};

/// Which batch to make.
pub(super) struct Ticket {
    pub(super) epoch: u64,
    /// In the order of the epoch.
    pub(super) positions: Range<usize>,
    pub(super) order: Arc<[u32]>,
    pub(super) ends_batch: bool,
    pub(super) state_after: DataState,
}

/// Makes batches; shared by the threads.
pub(super) struct Maker {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    /// Pictures before random changes.
    small: Cache<Small>,
    /// Pictures that are always the same.
    finished: Cache<Vec<f32>>,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Maker {
    pub(super) fn new(dataset: Arc<Dataset>, config: LoaderConfig) -> Self {
        let limit = config.cache.map_or(0, |cache| cache.bytes);
        Self { dataset, config, small: Cache::new(limit), finished: Cache::new(limit) }
    }

    pub(super) fn config(&self) -> &LoaderConfig {
        &self.config
    }

    pub(super) fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    pub(super) fn cached_bytes(&self) -> u64 {
        // One of the two is in use.
        self.small.used.load(Ordering::Relaxed) + self.finished.used.load(Ordering::Relaxed)
    }

    pub(super) fn batch(&self, ticket: Ticket, scratch: &mut Scratch) -> Result<Batch> {
        let size = self.size();
        let values = 3 * size.0 * size.1;
        let mut batch = Batch {
            pixels: vec![0.0; ticket.positions.len() * values],
            size,
            captions: Vec::new(),
            labels: Vec::new(),
            keys: Vec::new(),
            indices: Vec::new(),
            epoch: ticket.epoch,
            skipped: Vec::new(),
            ends_batch: ticket.ends_batch,
            state_after: ticket.state_after,
        };
        for position in ticket.positions {
            let index = ticket.order[position] as usize;
            let place = Place { index, epoch: ticket.epoch, position: position as u64 };
            let used = batch.keys.len() * values;
            let targets = self.targets(place).and_then(|targets| {
                self.pixels(place, scratch, &mut batch.pixels[used..used + values])?;
                Ok(targets)
            });
            match targets {
                Ok(Target { key, caption, label }) => {
                    batch.keys.push(key);
                    batch.captions.extend(caption);
                    batch.labels.extend(label);
                    batch.indices.push(index);
                }
                Err(error) if self.config.on_broken == OnBroken::Error => return Err(error),
                Err(error) => batch.skipped.push(error),
            }
        }
        batch.pixels.truncate(batch.keys.len() * values);
        Ok(batch)
    }

    /// Height and width of the pictures.
    fn size(&self) -> (usize, usize) {
        match &self.config.view {
            View::Train { size, .. } => (*size, *size),
            View::Eval(processor) => {
                let (width, height) = processor.size().expect("checked by the loader");
                (height, width)
            }
            View::None => (0, 0),
        }
    }

    fn targets(&self, place: Place) -> Result<Target> {
        let Annotation { key, mut captions, label, .. } = self.dataset.annotation(place.index)?;
        let missing =
            |what| DatasetError::NoTarget { place: self.dataset.place(place.index), what };
        let caption = if self.config.targets.captions {
            let (mut list, mut caption) = (0, 0);
            if !matches!(self.config.view, View::Eval(_)) && !captions.is_empty() {
                let mut draw = self.draw(place, Purpose::Caption);
                list = draw.below(captions.len());
                caption = draw.below(captions[list].len());
            }
            let text = captions.get_mut(list).and_then(|list| list.get_mut(caption));
            Some(std::mem::take(text.ok_or_else(|| missing("caption"))?))
        } else {
            None
        };
        let label = if self.config.targets.labels {
            Some(label.ok_or_else(|| missing("label"))?)
        } else {
            None
        };
        Ok(Target { key, caption, label })
    }

    fn draw(&self, place: Place, purpose: Purpose) -> Draw {
        Draw::new(self.config.seed, place.epoch, place.position, purpose)
    }

    fn pixels(&self, place: Place, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        match &self.config.view {
            View::Train { size, augment, mean, std } => {
                let side = self.config.cache.map(|cache| cache.side);
                let make = || self.read(place.index, |bytes| Small::decode(bytes, side));
                let small = self.small.get(place.index, |small| small.bytes().len(), make)?;
                let mut draw = self.draw(place, Purpose::Picture);
                augment.apply(&small, *size, (*mean, *std), &mut draw, scratch, out);
            }
            View::Eval(processor) => {
                let make = || self.read(place.index, |bytes| finish(bytes, processor));
                let pixels = self.finished.get(place.index, |pixels| 4 * pixels.len(), make)?;
                out.copy_from_slice(&pixels);
            }
            View::None => {}
        }
        Ok(())
    }

    fn read<T>(
        &self,
        index: usize,
        decode: impl FnOnce(&[u8]) -> std::result::Result<T, crate::image::PictureError>,
    ) -> Result<T> {
        let bytes = self.dataset.picture(index)?;
        decode(&bytes)
            .map_err(|source| DatasetError::Picture { place: self.dataset.place(index), source })
    }
}

fn finish(
    bytes: &[u8],
    processor: &Processor,
) -> std::result::Result<Vec<f32>, crate::image::PictureError> {
    processor.pixels(&decode(bytes, &Limits::default())?)
}

/// A sample in the order of an epoch.
#[derive(Clone, Copy)]
struct Place {
    index: usize,
    epoch: u64,
    position: u64,
}

struct Target {
    key: String,
    caption: Option<String>,
    label: Option<u32>,
}

/// Values by the number of the sample, kept as long as they fit. Nothing is thrown out: an epoch
/// comes to each of them once, so none is more useful than another.
struct Cache<T> {
    kept: RwLock<HashMap<usize, Arc<T>>>,
    /// In bytes.
    used: AtomicU64,
    /// In bytes.
    limit: u64,
}

impl<T> Cache<T> {
    /// What an entry takes besides its bytes: its places in the table and on the heap.
    const OVERHEAD: u64 = 96;

    fn new(limit: u64) -> Self {
        Self { kept: RwLock::default(), used: AtomicU64::new(0), limit }
    }

    /// The value of a sample, made if it is not kept.
    fn get(
        &self,
        index: usize,
        bytes: impl FnOnce(&T) -> usize,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        if let Some(kept) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return Ok(Arc::clone(kept));
        }
        let value = Arc::new(make()?);
        let bytes = bytes(&value) as u64 + Self::OVERHEAD;
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        // Written under the lock alone.
        let used = self.used.load(Ordering::Relaxed) + bytes;
        // Another thread may have been faster: a sample can come twice in an epoch.
        if used <= self.limit && !kept.contains_key(&index) {
            self.used.store(used, Ordering::Relaxed);
            kept.insert(index, Arc::clone(&value));
        }
        Ok(value)
    }
}
