//! The order of samples in an epoch, and the position in it.

use serde::{Deserialize, Serialize};

use super::{
    draw::{Draw, Purpose},
    error::{DatasetError, Result},
    mix::Dataset,
};

/// Where a run is in its data: what `data_state.json` of a checkpoint holds.
///
/// The order of an epoch follows from the seed and the epoch, so no order is stored. The number of
/// threads plays no part; a resumed run with another batch size goes on at the same sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataState {
    /// Of the order and of all changes to pictures.
    pub seed: u64,
    /// Samples in the sources, each counted once.
    pub samples: u64,
    /// Samples in an epoch, with weights.
    pub epoch_samples: u64,
    /// From 0.
    pub epoch: u64,
    /// Position of the next sample in the order of the epoch.
    pub index: u64,
    /// Broken samples left out so far.
    pub skipped: u64,
}

/// Puts the samples of an epoch in order.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Number of samples and weight of each source.
    shares: Vec<(usize, f64)>,
    seed: u64,
    shuffle: bool,
    samples: u64,
    epoch_samples: u64,
}

impl Sampler {
    /// For the sources of `dataset` and their weights. Without `shuffle` samples come in the order
    /// of the sources.
    ///
    /// # Errors
    /// When an epoch has more than 2^32 - 1 samples.
    pub fn new(dataset: &Dataset, seed: u64, shuffle: bool) -> Result<Self> {
        let shares: Vec<_> = dataset.shares().collect();
        let samples = dataset.len() as u64;
        let epoch_samples = shares.iter().map(|&share| count(share)).sum();
        let limit = u64::from(u32::MAX);
        if samples.max(epoch_samples) > limit {
            let samples = samples.max(epoch_samples);
            return Err(DatasetError::TooManySamples { samples, limit });
        }
        Ok(Self { shares, seed, shuffle, samples, epoch_samples })
    }

    /// Number of samples in an epoch.
    pub fn epoch_len(&self) -> usize {
        self.epoch_samples as usize
    }

    /// The position before the first sample.
    pub fn start(&self) -> DataState {
        DataState {
            seed: self.seed,
            samples: self.samples,
            epoch_samples: self.epoch_samples,
            epoch: 0,
            index: 0,
            skipped: 0,
        }
    }

    /// Whether a saved position is one of this order.
    ///
    /// # Errors
    /// When it was saved with another seed or other data.
    pub fn check(&self, state: &DataState) -> Result<()> {
        let differs = |field, saved, now| Err(DatasetError::OtherData { field, saved, now });
        if state.seed != self.seed {
            return differs("seed", state.seed, self.seed);
        }
        if state.samples != self.samples {
            return differs("samples", state.samples, self.samples);
        }
        if state.epoch_samples != self.epoch_samples {
            return differs("epoch_samples", state.epoch_samples, self.epoch_samples);
        }
        if state.index > self.epoch_samples {
            return differs("index", state.index, self.epoch_samples);
        }
        Ok(())
    }

    /// Numbers of the samples of an epoch in order. Each sample of a source of weight 1 comes once; of
    /// one of weight 2.5 it comes two or three times, and the three differ from epoch to epoch.
    pub fn order(&self, epoch: u64) -> Vec<u32> {
        let mut draw = Draw::new(self.seed, epoch, 0, Purpose::Order);
        let mut order = Vec::with_capacity(self.epoch_len());
        let mut start = 0;
        for &share in &self.shares {
            let (samples, count) = (share.0, count(share) as usize);
            let all = start..start + samples as u32;
            for _ in 0..count / samples {
                order.extend(all.clone());
            }
            let rest = count % samples;
            if self.shuffle && rest > 0 {
                let mut some: Vec<u32> = all.collect();
                for place in 0..rest {
                    some.swap(place, place + draw.below(samples - place));
                }
                order.extend(&some[..rest]);
            } else {
                // Evenly spread: neighbours are often alike.
                order.extend((0..rest).map(|n| start + (n * samples / rest) as u32));
            }
            start += samples as u32;
        }
        if self.shuffle {
            draw.shuffle(&mut order);
        }
        order
    }
}

/// Samples of a source in an epoch, at least 1.
fn count((samples, weight): (usize, f64)) -> u64 {
    ((samples as f64 * weight).round() as u64).max(1)
}
