//! Measurements during a run: accuracy of a classifier, zero-shot accuracy or retrieval of CLIP and
//! LiT.

use crate::config::{EvalConfig, EvalSet};
use crate::learner::Learner;
use crate::setup::Setup;
use crate::{Error, Result};
use ocelli_data::dataset::{
    Batch, CacheConfig, Dataset, Loader, LoaderConfig, OnBroken, Targets as Wanted, View,
};
use ocelli_data::text::{ClassNames, Ensemble, Language, templates};
use ocelli_eval::{Accuracy, ZeroShot, classifier, recall_at};
use ocelli_models::{Model, Pass};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::cell::OnceCell;
use std::sync::Arc;

/// Prepared pictures that are kept from one measurement to the next, in bytes.
const KEPT: u64 = 512 << 20;

/// One set of data to measure on.
#[derive(Debug)]
pub(crate) struct Evaluation {
    name: String,
    loader: Loader,
    task: Task,
    /// What a locked vision tower saw, once it did.
    seen: OnceCell<Vec<Seen>>,
}

/// A batch of pictures as features of a locked tower, with its targets.
#[derive(Debug)]
struct Seen {
    features: Tensor,
    labels: Vec<u32>,
    captions: Vec<String>,
}

#[derive(Debug)]
enum Task {
    Accuracy,
    ZeroShot { labels: Vec<String>, templates: Vec<String> },
    Retrieval,
}

impl Evaluation {
    /// Opens all sets; `classes` are those of the training data.
    pub(crate) fn open_all(
        config: &EvalConfig,
        learner: &Learner,
        classes: &[String],
    ) -> Result<Vec<Self>> {
        config.sets.iter().map(|set| Self::open(set, config.batch_size, learner, classes)).collect()
    }

    fn open(
        set: &EvalSet,
        batch_size: usize,
        learner: &Learner,
        classes: &[String],
    ) -> Result<Self> {
        let task = match (&learner.model, &set.labels) {
            (Model::Clip(_) | Model::Lit(_), None) => Task::Retrieval,
            (Model::Clip(_) | Model::Lit(_), Some(labels)) => {
                Task::ZeroShot { labels: read_labels(labels)?, templates: expand(&set.templates) }
            }
            _ => Task::Accuracy,
        };
        let dataset = match &task {
            Task::ZeroShot { labels, .. } => Dataset::open_with_classes(&set.sources, labels)?,
            Task::Accuracy if !classes.is_empty() => {
                Dataset::open_with_classes(&set.sources, classes)?
            }
            _ => Dataset::open(&set.sources)?,
        };
        let has_captions = matches!(task, Task::Retrieval);
        // Of what a locked tower looks at, features are kept.
        let keeps_pictures = !matches!(learner.model, Model::Lit(_));
        let loader = Loader::new(
            Arc::new(dataset),
            LoaderConfig {
                batch_size,
                threads: 1,
                seed: 0,
                shuffle: false,
                drop_last: false,
                epochs: Some(1),
                on_broken: OnBroken::Error,
                targets: Wanted { captions: has_captions, labels: !has_captions },
                view: View::Eval(learner.processor.clone()),
                cache: keeps_pictures
                    .then_some(CacheConfig { bytes: KEPT, ..CacheConfig::default() }),
            },
        )?;
        Ok(Self { name: set.name.clone(), loader, task, seen: OnceCell::new() })
    }

    /// Names and values of the metrics, accuracies in [0, 1].
    pub(crate) fn run(&self, setup: &Setup) -> Result<Vec<(String, f64)>> {
        let metrics = no_grad(|| match (&self.task, &setup.learner.model) {
            (Task::ZeroShot { labels, templates }, model) => {
                let rows = classifier(labels, templates, |prompts: &[String]| {
                    setup.encode_texts(prompts)
                })?;
                let mut task = ZeroShot::new(rows);
                self.each_image(model, |images, labels, _| Ok(task.add(images, labels)?))?;
                Ok(vec![("top1", task.accuracy.top1()), ("top5", task.accuracy.top5())])
            }
            (Task::Retrieval, model) => {
                let (mut images, mut captions) = (Vec::new(), Vec::new());
                self.each_image(model, |of_batch, _, texts| {
                    images.push(of_batch.l2_normalise()?);
                    captions.push(setup.encode_texts(texts)?.l2_normalise()?);
                    Ok(())
                })?;
                let all = |parts: &[Tensor]| Tensor::cat(&parts.iter().collect::<Vec<_>>(), 0);
                let scores = all(&images)?.linear(&all(&captions)?, None)?; // [images, texts]
                let n = scores.shape().rows();
                let recall = recall_at(scores.values(), n, &(0..n).collect::<Vec<_>>())?;
                let [i1, i5, _] = recall.image_to_text;
                let [t1, t5, _] = recall.text_to_image;
                Ok(vec![
                    ("image_to_text_r1", i1),
                    ("image_to_text_r5", i5),
                    ("text_to_image_r1", t1),
                    ("text_to_image_r5", t5),
                ])
            }
            (_, Model::Vit(_) | Model::Hybrid(_) | Model::LocalVit(_)) => {
                let (mut accuracy, mut loss) = (Accuracy::default(), 0.0);
                self.each(|batch| {
                    let logits = setup.learner.logits(&pixels_of(batch)?, Pass::default())?;
                    let targets = Targets::Classes(batch.labels[..].into(), 0.0);
                    let mean = logits.cross_entropy(&targets)?.item()?;
                    loss += f64::from(mean) * batch.labels.len() as f64;
                    let classes = logits.shape().last_axis();
                    accuracy.add(logits.values(), classes, &batch.labels);
                    Ok(())
                })?;
                let loss = loss / accuracy.rows.max(1) as f64;
                Ok(vec![("top1", accuracy.top1()), ("top5", accuracy.top5()), ("loss", loss)])
            }
            _ => Ok::<_, Error>(Vec::new()),
        })?;
        Ok(metrics.into_iter().map(|(metric, v)| (format!("{}_{metric}", self.name), v)).collect())
    }

    /// Pictures in the joint space, `[batch, embed_dim]`, of any length, with labels and captions.
    fn each_image(
        &self,
        model: &Model,
        mut use_batch: impl FnMut(&Tensor, &[u32], &[String]) -> Result<()>,
    ) -> Result<()> {
        match model {
            Model::Clip(clip) => self.each(|batch| {
                let images = clip.encode_image(&pixels_of(batch)?)?;
                use_batch(&images, &batch.labels, &batch.captions)
            }),
            Model::Lit(lit) => {
                let seen = match self.seen.get() {
                    Some(seen) => seen,
                    None => {
                        let mut seen = Vec::new();
                        self.each(|batch| {
                            let features = lit.image_features(&pixels_of(batch)?)?;
                            let (labels, captions) = (batch.labels.clone(), batch.captions.clone());
                            seen.push(Seen { features, labels, captions });
                            Ok(())
                        })?;
                        self.seen.get_or_init(|| seen)
                    }
                };
                for Seen { features, labels, captions } in seen {
                    use_batch(&lit.project_images(features)?, labels, captions)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn each(&self, mut use_batch: impl FnMut(&Batch) -> Result<()>) -> Result<()> {
        for batch in self.loader.batches(&self.loader.start())? {
            use_batch(&batch?)?;
        }
        Ok(())
    }
}

/// `[n, 3, img_h, img_w]`.
fn pixels_of(batch: &Batch) -> Result<Tensor> {
    let (height, width) = batch.size;
    Ok(Tensor::from_slice(&batch.pixels, &[batch.keys.len(), 3, height, width])?)
}

/// The lines of a file, or the published class names.
fn read_labels(labels: &str) -> Result<Vec<String>> {
    if labels == "imagenet" {
        return Ok(ClassNames::imagenet(Language::English));
    }
    let text = std::fs::read_to_string(labels)
        .map_err(|source| Error::Io { path: labels.into(), source })?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Names of published ensembles become their templates.
fn expand(names: &[String]) -> Vec<String> {
    let of = |name: &String| match name.as_str() {
        "imagenet80" => templates(Ensemble::Imagenet80),
        "imagenet7" => templates(Ensemble::Imagenet7),
        _ => vec![name.clone()],
    };
    names.iter().flat_map(of).collect()
}
