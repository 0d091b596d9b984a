//! Mixup: pictures and their targets as weighted means of pairs (Zhang et al. 2018,
//! arXiv:1710.09412, §2).

use crate::Result;
use ocelli_tensor::{Targets, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};

/// Mixes each picture of `pixels` `[n, ..]` with the one as far from the end as it is from the
/// start, in place, by a share drawn once from Beta(`alpha`, `alpha`). Returns the mixed targets,
/// `[n, classes]`, smoothed by `smoothing`.
///
/// # Errors
/// If a label is not below `classes`.
pub fn mixup(
    pixels: &mut [f32],
    labels: &[u32],
    classes: usize,
    alpha: f64,
    smoothing: f32,
    rng: &mut ChaCha8Rng,
) -> Result<Targets> {
    let n = labels.len();
    let share = Beta::new(alpha, alpha).map_or(1.0, |beta| beta.sample(rng)) as f32;
    let picture = pixels.len() / n.max(1);
    for i in 0..n / 2 {
        let (front, back) = pixels.split_at_mut((n - 1 - i) * picture);
        let (front, back) = (&mut front[i * picture..][..picture], &mut back[..picture]);
        for (a, b) in front.iter_mut().zip(back) {
            (*a, *b) = (share * *a + (1.0 - share) * *b, share * *b + (1.0 - share) * *a);
        }
    }
    let mut rows = vec![smoothing / classes.max(1) as f32; n * classes];
    for (i, row) in rows.chunks_exact_mut(classes.max(1)).enumerate() {
        for (label, share) in [(labels[i], share), (labels[n - 1 - i], 1.0 - share)] {
            let index = label as usize;
            let wrong = ocelli_tensor::Error::Index { op: "mixup", index, len: classes };
            *row.get_mut(index).ok_or(wrong)? += share * (1.0 - smoothing);
        }
    }
    Ok(Targets::Distributions(Tensor::from_slice(&rows, &[n, classes])?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn pairs_share_pixels_and_targets_alike() {
        let mut pixels = [1.0, 1.0, 5.0, 5.0, 2.0, 2.0];
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let targets = mixup(&mut pixels, &[0, 1, 2], 3, 0.4, 0.0, &mut rng).unwrap();
        let Targets::Distributions(rows) = targets else { panic!("distributions") };
        let rows = rows.values();
        let share = rows[0];
        assert!((0.0..=1.0).contains(&share) && (share + rows[2] - 1.0).abs() < 1e-6);
        assert!((pixels[0] - (share + 2.0 * (1.0 - share))).abs() < 1e-6);
        assert!((pixels[0] + pixels[4] - 3.0).abs() < 1e-6);
        // The middle one is its own partner.
        assert_eq!(
            (pixels[2].to_bits(), rows[4].to_bits()),
            (5.0_f32.to_bits(), 1.0_f32.to_bits())
        );
        for row in rows.chunks_exact(3) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        assert!(mixup(&mut pixels, &[0, 1, 3], 3, 0.4, 0.0, &mut rng).is_err());
    }
}
