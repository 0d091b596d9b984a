//! The contrastive objective of CLIP over a batch that need not fit the memory.

use super::Outcome;
use crate::Result;
use ocelli_tensor::{Tensor, no_grad};

/// Features of the pictures and of the texts of some samples, each `[n, width]`, of any length.
pub type Features = [Tensor; 2];

/// The mean of the cross-entropies along both axes of `exp(logit_scale) i tᵀ`, `i` and `t` the
/// features of all pictures and texts at length 1 (Radford et al. 2021, arXiv:2103.00020, Figure 3).
/// `parts` are the samples of the step.
///
/// Where these are too many for the memory, `again` gives the same parts a second time. The loss is
/// still that of the whole matrix: features of all parts are computed first without a tape, then the
/// gradient of each feature, then each part runs again and takes its share of that gradient back (Gao
/// et al. 2021, arXiv:2101.06983, §3.2). `learns` says whether each tower does; one that does not may
/// give anything the second time.
///
/// # Errors
/// What a part returns, or shapes that do not fit.
pub fn contrastive(
    parts: &mut dyn Iterator<Item = Result<Features>>,
    again: Option<&mut dyn Iterator<Item = Result<Features>>>,
    learns: [bool; 2],
    logit_scale: &Tensor,
) -> Result<Outcome> {
    let loss_of = |i: &Tensor, t: &Tensor| -> Result<Tensor> {
        Ok(i.l2_normalise()?.contrastive_loss(&t.l2_normalise()?, logit_scale)?)
    };
    let Some(again) = again else {
        let [i, t] = joined(&parts.collect::<Result<Vec<_>>>()?)?;
        let loss = loss_of(&i, &t)?;
        return Ok(Outcome { loss: loss.item()?, gradients: loss.backward()? });
    };
    let [i, t] = joined(&no_grad(|| parts.collect::<Result<Vec<_>>>())?)?;
    // Leaves of the tape where the tower learns.
    let i = if learns[0] { i.leaf() } else { i };
    let t = if learns[1] { t.leaf() } else { t };
    let loss = loss_of(&i, &t)?;
    let mut gradients = loss.backward()?;
    let of_features = [gradients.take(&i), gradients.take(&t)];
    let mut start = 0;
    for part in again {
        let part = part?;
        let n = part[0].shape()[0];
        for (features, of_features) in part.into_iter().zip(&of_features) {
            if let Some(of_features) = of_features {
                let share = of_features.narrow(0, start, n)?; // [n, width]
                gradients.add(features.backward_from(&share)?);
            }
        }
        start += n;
    }
    Ok(Outcome { loss: loss.item()?, gradients })
}

/// Features of all samples.
fn joined(parts: &[Features]) -> Result<Features> {
    let side = |of: usize| match parts {
        [only] => Ok(only[of].clone()),
        _ => Tensor::cat(&parts.iter().map(|p| &p[of]).collect::<Vec<_>>(), 0), // [samples, width]
    };
    Ok([side(0)?, side(1)?])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use std::ops::Range;

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
        let of = |x: &[f32], w: &Tensor, range: Range<usize>| -> Result<Tensor> {
            let x = &x[range.start * inputs..range.end * inputs];
            Ok(Tensor::from_slice(x, &[range.len(), inputs])?.linear(w, None)?)
        };
        let run = |micro: usize, learns| {
            let part = |start: usize| {
                let range = start..n.min(start + micro);
                Ok([of(&xi, &wi, range.clone())?, of(&xt, &wt, range)?])
            };
            let mut again = (0..n).step_by(micro).map(part);
            let again =
                if micro < n { Some(&mut again as &mut dyn Iterator<Item = _>) } else { None };
            contrastive(&mut (0..n).step_by(micro).map(part), again, learns, &scale).unwrap()
        };
        let whole = run(n, [true; 2]);
        for micro in [1, 4, 5, 12] {
            let part = run(micro, [true; 2]);
            assert!((part.loss - whole.loss).abs() < 1e-6);
            for leaf in [&wi, &wt, &scale] {
                let pair = (part.gradients.get(leaf).unwrap(), whole.gradients.get(leaf).unwrap());
                for (a, b) in pair.0.values().iter().zip(pair.1.values()) {
                    assert!((a - b).abs() < 1e-5, "micro {micro}: {a} {b}");
                }
            }
        }
        let frozen = run(4, [false, true]);
        assert!(frozen.gradients.get(&wi).is_none() && frozen.gradients.get(&wt).is_some());
    }
}
