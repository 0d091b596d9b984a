//! Dropout (Srivastava et al. 2014, JMLR 15).

use ocelli_tensor::{Result, Tensor};

/// The dropout of one pass of a part of a step; by default there is none, as in use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    rate: f32,
    key: u64,
}

impl Dropout {
    /// Values become 0 with probability `rate`, in [0, 1). `seed`, `step` and the `part` of it pick
    /// the masks, so that a resumed run and a pass computed again meet the same.
    pub fn new(rate: f32, seed: u64, step: u64, part: u64) -> Self {
        let all = [seed, step, part];
        Self { rate, key: all.iter().fold(OFFSET, |key, n| mixed(key, &n.to_le_bytes())) }
    }

    /// Whether nothing is dropped.
    pub fn is_off(self) -> bool {
        self.rate == 0.0
    }

    /// `dropout(x) + residual` behind what `name` names; every name has its own mask.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(self, x: &Tensor, name: &str, residual: Option<&Tensor>) -> Result<Tensor> {
        match residual {
            None if self.is_off() => Ok(x.clone()),
            Some(residual) if self.is_off() => x.add(residual),
            _ => x.dropout(self.rate, mixed(self.key, name.as_bytes()), residual),
        }
    }
}

/// FNV-1a, 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn mixed(key: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(key, |key, byte| (key ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn masks_differ_by_seed_step_part_and_name() {
        let ones = Tensor::full(1.0, &[1000]);
        let mask = |(seed, step, part), name: &str| {
            let y = Dropout::new(0.5, seed, step, part).forward(&ones, name, None).unwrap();
            y.values().to_vec()
        };
        let same = mask((1, 2, 3), "a");
        assert_eq!(mask((1, 2, 3), "a"), same);
        for other in [
            mask((2, 2, 3), "a"),
            mask((1, 3, 3), "a"),
            mask((1, 2, 4), "a"),
            mask((1, 2, 3), "b"),
            mask((2, 1, 3), "a"),
        ] {
            // Of 1,000 fair coins, 500 agree, give or take 6 standard deviations.
            let agree = same.iter().zip(&other).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
            assert!((405..=595).contains(&agree), "{agree}");
        }
        assert!(Dropout::default().is_off() && !Dropout::new(0.1, 0, 0, 0).is_off());
    }
}
