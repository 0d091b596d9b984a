//! Zero-shot classification by text (Radford et al. 2021, arXiv:2103.00020, §3.1).

use crate::{Accuracy, Error};
use ocelli_data::text::prompts;
use ocelli_tensor::Tensor;

/// Prompts that are encoded at once.
const PROMPTS_AT_ONCE: usize = 128;

/// The classifier of a list of labels, `[labels, width]`: each row is the mean of the normalised
/// features of the label in every template, normalised again. `encode` turns texts into features
/// `[texts, width]` of any length.
///
/// # Errors
/// [`Error::NoLabels`], [`Error::NoTemplates`], a template without `{}`, or what `encode` returns.
pub fn classifier<E: From<Error>>(
    labels: &[String],
    templates: &[String],
    mut encode: impl FnMut(&[String]) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    if labels.is_empty() {
        return Err(Error::NoLabels.into());
    }
    if templates.is_empty() {
        return Err(Error::NoTemplates.into());
    }
    let mut rows = Vec::new();
    for labels in labels.chunks((PROMPTS_AT_ONCE / templates.len()).max(1)) {
        let mut texts = Vec::with_capacity(labels.len() * templates.len());
        for label in labels {
            texts.extend(prompts(label, templates).map_err(Error::Text)?);
        }
        let features = encode(&texts)?.l2_normalise().map_err(Error::Tensor)?;
        let width = features.shape().last_axis();
        for prompts in features.values().chunks_exact(width * templates.len()) {
            let mean = |column: usize| {
                let of_column = prompts.iter().skip(column).step_by(width);
                of_column.sum::<f32>() / templates.len() as f32
            };
            rows.extend((0..width).map(mean));
        }
    }
    let shape = [labels.len(), rows.len() / labels.len()];
    let means = Tensor::from_slice(&rows, &shape).map_err(Error::Tensor)?;
    Ok(means.l2_normalise().map_err(Error::Tensor)?)
}

/// Classifies pictures by their cosine with each row of a [`classifier`].
#[derive(Debug)]
pub struct ZeroShot {
    classifier: Tensor,
    /// The counts so far.
    pub accuracy: Accuracy,
}

impl ZeroShot {
    /// With the rows of `classifier` `[labels, width]`.
    pub fn new(classifier: Tensor) -> Self {
        Self { classifier, accuracy: Accuracy::default() }
    }

    /// Counts pictures by their features `[pictures, width]` and right labels.
    ///
    /// # Errors
    /// If the width is not the classifier's or the labels are not one per picture.
    pub fn add(&mut self, features: &Tensor, targets: &[u32]) -> Result<(), Error> {
        let scores = features.l2_normalise()?.linear(&self.classifier, None)?; // [pictures, labels]
        let classes = scores.shape().last_axis();
        if scores.shape().rows() != targets.len() {
            let (expected, got) = (scores.shape().rows(), targets.len());
            return Err(Error::Length { metric: "zero-shot accuracy", expected, got });
        }
        self.accuracy.add(scores.values(), classes, targets);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    /// "a" points right, "b" up, longer prompts are longer vectors.
    fn encode(texts: &[String]) -> Result<Tensor, Error> {
        let mut values = Vec::new();
        for text in texts {
            let n = text.len() as f32;
            values.extend(if text.contains('a') { [n, 0.1 * n] } else { [0.0, n] });
        }
        Ok(Tensor::from_slice(&values, &[texts.len(), 2])?)
    }

    #[test]
    fn every_template_counts_the_same() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let templates = ["{}".to_owned(), "long prompt with {}".to_owned()];
        let rows = classifier(&labels, &templates, |texts: &[String]| {
            // The long prompts point elsewhere, and their length must not matter.
            let values: Vec<f32> = texts
                .iter()
                .flat_map(|t| if t.len() > 1 { [50.0, 0.0] } else { [0.0, 1.0] })
                .collect();
            Ok::<_, Error>(Tensor::from_slice(&values, &[texts.len(), 2])?)
        })
        .unwrap();
        let half = 0.5_f32.sqrt();
        for v in rows.values() {
            assert!((v - half).abs() < 1e-6, "{v}");
        }
    }

    #[test]
    fn pictures_go_to_the_nearest_label() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let rows = classifier(&labels, &["{}".to_owned()], encode).unwrap();
        let mut task = ZeroShot::new(rows);
        let pictures = Tensor::from_slice(&[3.0, 0.0, 0.1, 7.0, 1.0, 0.0], &[3, 2]).unwrap();
        task.add(&pictures, &[0, 1, 1]).unwrap();
        assert_eq!((task.accuracy.rows, task.accuracy.first), (3, 2));
        assert!(matches!(task.add(&pictures, &[0]), Err(Error::Length { .. })));
        assert!(matches!(classifier(&[], &["{}".to_owned()], encode), Err(Error::NoLabels)));
        assert!(matches!(classifier(&labels, &[], encode), Err(Error::NoTemplates)));
    }

    #[test]
    fn many_labels_are_encoded_in_parts() {
        let labels: Vec<String> = (0..300).map(|i| format!("b{i}")).collect();
        let mut calls = 0;
        let rows = classifier(&labels, &["{}".to_owned()], |texts: &[String]| {
            calls += 1;
            encode(texts)
        })
        .unwrap();
        assert_eq!((calls, &rows.shape()[..]), (3, &[300, 2][..]));
    }
}
