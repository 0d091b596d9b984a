//! The contrastive objective of CLIP over a batch that need not fit the memory.

use super::{Outcome, parts};
use crate::Result;
use ocelli_tensor::{Gradients, Tensor, no_grad};
use std::ops::Range;

/// One side of the comparison.
pub struct Tower<'a> {
    /// Features `[range, width]` of a range of the samples, of any length; the same for the same
    /// range however often it is asked.
    pub encode: &'a dyn Fn(Range<usize>) -> Result<Tensor>,
    /// Whether any of its parameters learns; a frozen tower runs once.
    pub learns: bool,
}

/// The mean of the cross-entropies along both axes of `exp(logit_scale) i tᵀ`, `i` and `t` the
/// features of `samples` pictures and texts at length 1 (Radford et al. 2021, arXiv:2103.00020,
/// Figure 3).
///
/// With `micro` below `samples` the loss is still that of the whole matrix: features of all parts
/// are computed first without a tape, then the gradient of each feature, then each part runs again
/// and takes its share of that gradient back (Gao et al. 2021, arXiv:2101.06983, §3.2).
///
/// # Errors
/// What the towers return, or shapes that do not fit.
pub fn contrastive(
    samples: usize,
    micro: usize,
    images: &Tower<'_>,
    texts: &Tower<'_>,
    logit_scale: &Tensor,
) -> Result<Outcome> {
    if micro >= samples {
        let i = (images.encode)(0..samples)?.l2_normalise()?;
        let t = (texts.encode)(0..samples)?.l2_normalise()?;
        let loss = i.contrastive_loss(&t, logit_scale)?;
        return Ok(Outcome { loss: loss.item()?, gradients: loss.backward()? });
    }
    let i = all_features(samples, micro, images)?;
    let t = all_features(samples, micro, texts)?;
    let loss = i.l2_normalise()?.contrastive_loss(&t.l2_normalise()?, logit_scale)?;
    let mut gradients = loss.backward()?;
    for (tower, features) in [(images, i), (texts, t)] {
        if let Some(of_features) = gradients.take(&features) {
            run_again(samples, micro, tower, &of_features, &mut gradients)?;
        }
    }
    Ok(Outcome { loss: loss.item()?, gradients })
}

/// Features of all samples, a leaf of the tape if the tower learns.
fn all_features(samples: usize, micro: usize, tower: &Tower<'_>) -> Result<Tensor> {
    let of_parts: Vec<Tensor> =
        no_grad(|| parts(samples, micro).map(tower.encode).collect::<Result<_>>())?;
    let all = Tensor::cat(&of_parts.iter().collect::<Vec<_>>(), 0)?; // [samples, width]
    Ok(if tower.learns { all.leaf() } else { all })
}

/// Adds the gradients of the tower's parameters, given those of its features.
fn run_again(
    samples: usize,
    micro: usize,
    tower: &Tower<'_>,
    of_features: &Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    for range in parts(samples, micro) {
        let share = of_features.narrow(0, range.start, range.len())?; // [range, width]
        gradients.add((tower.encode)(range)?.backward_from(&share)?);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    fn values(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn parts_give_the_gradient_of_the_whole() {
        let (n, inputs, width) = (13, 6, 5);
        let weight = |step| {
            Tensor::from_slice(&values(inputs * width, step), &[width, inputs]).unwrap().leaf()
        };
        let (wi, wt) = (weight(0.7), weight(1.3));
        let scale = Tensor::scalar(1.5).leaf();
        let (xi, xt) = (values(n * inputs, 0.9), values(n * inputs, 0.31));
        let of = |x: &[f32], w: &Tensor, range: Range<usize>| {
            let x = &x[range.start * inputs..range.end * inputs];
            Ok(Tensor::from_slice(x, &[range.len(), inputs])?.linear(w, None)?)
        };
        let image = |range| of(&xi, &wi, range);
        let text = |range| of(&xt, &wt, range);
        let run = |micro, learns| {
            let images = Tower { encode: &image, learns };
            let texts = Tower { encode: &text, learns: true };
            contrastive(n, micro, &images, &texts, &scale).unwrap()
        };
        let whole = run(n, true);
        for micro in [1, 4, 5, 12] {
            let part = run(micro, true);
            assert!((part.loss - whole.loss).abs() < 1e-6);
            for leaf in [&wi, &wt, &scale] {
                let pair = (part.gradients.get(leaf).unwrap(), whole.gradients.get(leaf).unwrap());
                for (a, b) in pair.0.values().iter().zip(pair.1.values()) {
                    assert!((a - b).abs() < 1e-5, "micro {micro}: {a} {b}");
                }
            }
        }
        let frozen = run(4, false);
        assert!(frozen.gradients.get(&wi).is_none() && frozen.gradients.get(&wt).is_some());
    }
}
