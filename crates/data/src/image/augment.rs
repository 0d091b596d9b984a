//! The random crop of training pictures.
//!
//! Its distribution is torchvision's; the random stream is not. Every number is drawn from the
//! generator that is passed, by rules of this file alone, so a seed gives the same crops in every
//! release.

use ::rand_chacha::rand_core::Rng;

use super::resize::Window;

/// A crop of random area and aspect.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RandomResizedCrop {
    /// Range of the crop's share of the picture's area, in (0, 1].
    pub scale: (f64, f64),
    /// Range of width over height; the logarithm is uniform.
    pub ratio: (f64, f64),
}

impl RandomResizedCrop {
    /// The random rectangle inside a picture of `width` x `height`.
    pub(crate) fn window(&self, width: usize, height: usize, rng: &mut impl Rng) -> Window {
        let area = width as f64 * height as f64;
        let place = |left: usize, top: usize, width: usize, height: usize| Window {
            x: left..left + width,
            y: top..top + height,
        };
        for _ in 0..10 {
            let target = area * uniform(rng, self.scale.0, self.scale.1);
            let ratio = uniform(rng, self.ratio.0.ln(), self.ratio.1.ln()).exp();
            let crop_width = (target * ratio).sqrt().round_ties_even() as usize;
            let crop_height = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                let top = below(rng, height - crop_height + 1);
                let left = below(rng, width - crop_width + 1);
                return place(left, top, crop_width, crop_height);
            }
        }
        // No rectangle fitted: the largest one in the middle with an allowed aspect.
        let ratio = width as f64 / height as f64;
        let (mut crop_width, mut crop_height) = (width, height);
        if ratio < self.ratio.0 {
            crop_height = (width as f64 / self.ratio.0).round_ties_even() as usize;
        } else if ratio > self.ratio.1 {
            crop_width = (height as f64 * self.ratio.1).round_ties_even() as usize;
        }
        let crop_width = crop_width.clamp(1, width);
        let crop_height = crop_height.clamp(1, height);
        place((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height)
    }
}

/// In [0, 1), 53 bits.
fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * unit(rng)
}

/// An integer below `end`; the bias is below 2^-20 for pictures.
fn below(rng: &mut impl Rng, end: usize) -> usize {
    ((unit(rng) * end as f64) as usize).min(end.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    use super::*;

    #[test]
    fn crops_keep_to_their_ranges() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let crop = RandomResizedCrop { scale: (0.2, 0.6), ratio: (0.75, 4.0 / 3.0) };
        let mut lefts = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let window = crop.window(90, 70, &mut rng);
            assert!(window.x.end <= 90 && window.y.end <= 70, "{window:?}");
            let (crop_width, crop_height) = (window.x.len() as f64, window.y.len() as f64);
            let share = crop_width * crop_height / 6300.0;
            assert!((0.18..0.63).contains(&share), "{share}");
            assert!((0.72..1.39).contains(&(crop_width / crop_height)), "{window:?}");
            lefts.insert(window.x.start);
        }
        assert!(lefts.len() > 30, "crops should move");
        // Nothing of an allowed aspect fits by chance: the largest centred one.
        let all = RandomResizedCrop { scale: (1.0, 1.0), ..crop }.window(100, 10, &mut rng);
        assert_eq!(all, Window { x: 43..56, y: 0..10 });
    }
}
