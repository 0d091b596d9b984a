//! The supervised objective: cross-entropy of a classifier.

use super::Outcome;
use crate::Result;
use ocelli_tensor::{Gradients, Targets, Tensor};

/// The mean softmax cross-entropy over all samples of `parts`, each the logits `[n, classes]` of some
/// samples with their targets. A part is asked for when the one before is done with, so that one
/// alone is in memory. `samples` is how many there should be in all; where some were left out, the
/// mean is that of the others.
///
/// # Errors
/// What a part returns, or targets that do not fit.
pub fn supervised(
    samples: usize,
    parts: &mut dyn Iterator<Item = Result<(Tensor, Targets)>>,
) -> Result<Outcome> {
    let mut gradients = Gradients::default();
    let (mut sum, mut seen) = (0.0, 0);
    for part in parts {
        let (logits, targets) = part?;
        let n = logits.shape()[0];
        let loss = logits.cross_entropy(&targets)?.scale(n as f32 / samples as f32)?;
        sum += f64::from(loss.item()?);
        gradients.add(loss.backward()?);
        seen += n;
    }
    if seen != samples {
        let factor = samples as f64 / seen.max(1) as f64;
        gradients.scale(factor as f32);
        sum *= factor;
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
        let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
        let run = |micro: usize, samples: usize| {
            let part = |start: usize| {
                let range = start..n.min(start + micro);
                let x = &x[range.start * inputs..range.end * inputs];
                let logits = Tensor::from_slice(x, &[range.len(), inputs])?.linear(&w, None)?;
                Ok((logits, Targets::Classes(labels[range].into(), 0.1)))
            };
            supervised(samples, &mut (0..n).step_by(micro).map(part)).unwrap()
        };
        let whole = run(n, n);
        // Also when there should have been more.
        for (micro, samples) in [(1, n), (2, n), (4, n), (10, n), (4, n + 3)] {
            let part = run(micro, samples);
            assert!((part.loss - whole.loss).abs() < 1e-6);
            let pair = (part.gradients.get(&w).unwrap(), whole.gradients.get(&w).unwrap());
            for (a, b) in pair.0.values().iter().zip(pair.1.values()) {
                assert!((a - b).abs() < 1e-5, "micro {micro}: {a} {b}");
            }
        }
    }
}
