//! Random numbers that depend on a place in the data alone.

use ::rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// What the numbers are for; each purpose has its own stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// The order of an epoch.
    Order = 1,
    /// The caption of a sample.
    Caption = 2,
    /// The changes to a picture.
    Picture = 3,
}

/// A stream of random numbers.
pub(super) struct Draw(pub(super) ChaCha8Rng);

impl Draw {
    /// The stream of one position of one epoch.
    pub(super) fn new(seed: u64, epoch: u64, position: u64, purpose: Purpose) -> Self {
        let mut state = 0;
        for part in [seed, epoch, position, purpose as u64] {
            state = mix(state ^ part);
        }
        let mut key = [0; 32];
        for chunk in key.chunks_exact_mut(8) {
            state = mix(state);
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// In [0, 1), 53 bits.
    pub(super) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// An integer below `end`, which is at least 1; the bias is below 2^-32 for u32 ranges.
    pub(super) fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.0.next_u64()) * end as u128) >> 64) as usize
    }

    /// Puts `items` in random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// A bijection of u64 that scatters neighbours (the finaliser of `SplitMix64`).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
