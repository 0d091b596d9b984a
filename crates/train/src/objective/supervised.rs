//! The supervised objective: cross-entropy of a classifier.

use super::{Outcome, parts};
use crate::Result;
use ocelli_tensor::{Gradients, Targets, Tensor};
use std::ops::Range;

/// The mean softmax cross-entropy of `logits` `[range, classes]` against `targets` of all
/// `samples`, computed in parts of `micro` that are weighted by their size.
///
/// # Errors
/// What `logits` returns, or targets that do not fit.
pub fn supervised(
    samples: usize,
    micro: usize,
    logits: &dyn Fn(Range<usize>) -> Result<Tensor>,
    targets: &Targets,
) -> Result<Outcome> {
    let mut gradients = Gradients::default();
    let mut sum = 0.0;
    for range in parts(samples, micro) {
        let share = range.len() as f32 / samples as f32;
        let of_range = match targets {
            Targets::Classes(all, smoothing) => {
                Targets::Classes(all[range.clone()].into(), *smoothing)
            }
            Targets::Distributions(all) => {
                Targets::Distributions(all.narrow(0, range.start, range.len())?)
            }
        };
        let loss = logits(range)?.cross_entropy(&of_range)?.scale(share)?;
        sum += f64::from(loss.item()?);
        gradients.add(loss.backward()?);
    }
    Ok(Outcome { loss: sum as f32, gradients })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn parts_give_the_gradient_of_the_whole() {
        let (n, inputs, classes) = (11, 4, 3);
        let x: Vec<f32> = (0..n * inputs).map(|i| (i as f32 * 0.77).sin()).collect();
        let w: Vec<f32> = (0..classes * inputs).map(|i| (i as f32 * 0.31).cos()).collect();
        let w = Tensor::from_slice(&w, &[classes, inputs]).unwrap().leaf();
        let logits = |range: Range<usize>| {
            let x = &x[range.start * inputs..range.end * inputs];
            Ok(Tensor::from_slice(x, &[range.len(), inputs])?.linear(&w, None)?)
        };
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
        let spread: Vec<f32> =
            (0..n).flat_map(|i| [0.2, 0.3 + 0.01 * i as f32, 0.5 - 0.01 * i as f32]).collect();
        for targets in [
            Targets::Classes(labels.into(), 0.1),
            Targets::Distributions(Tensor::from_slice(&spread, &[n, classes]).unwrap()),
        ] {
            let whole = supervised(n, n, &logits, &targets).unwrap();
            for micro in [1, 2, 4, 10] {
                let part = supervised(n, micro, &logits, &targets).unwrap();
                assert!((part.loss - whole.loss).abs() < 1e-6);
                let pair = (part.gradients.get(&w).unwrap(), whole.gradients.get(&w).unwrap());
                for (a, b) in pair.0.values().iter().zip(pair.1.values()) {
                    assert!((a - b).abs() < 1e-5, "micro {micro}: {a} {b}");
                }
            }
        }
    }
}
