//! From a batch to a loss and its gradients, for the model and the stage of a run.

use crate::config::StageConfig;
use crate::objective::{Outcome, contrastive, mixup, supervised};
use crate::optimiser::Rule;
use crate::parts::Part;
use crate::progress::Progress;
use crate::setup::{Reader, Setup};
use crate::{Error, Result};
use ocelli_data::dataset::{Batch, Batches, DataState};
use ocelli_models::{Model, Pass};
use ocelli_nn::layers::{Dropout, NormStatistics};
use ocelli_tensor::{Targets, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::cell::RefCell;

/// exp of this is 100, the most that the cosines are multiplied by (Radford et al. 2021, §2.5).
const LARGEST_LOGIT_SCALE: f32 = 4.605_170_2;

/// The batches of a run, in parts that fit the memory.
pub(crate) struct Feed {
    parts: Batches,
    /// The same once more, for steps that need the pictures a second time: reading them again costs
    /// less than the memory to keep them.
    again: Option<Batches>,
}

/// What a step took from its feed.
pub(crate) struct Taken {
    /// Samples.
    pub(crate) samples: usize,
    /// The epoch they belong to, from 0.
    pub(crate) epoch: u64,
    /// The position after them.
    pub(crate) state_after: DataState,
}

impl Feed {
    /// From the position `state` on.
    pub(crate) fn open(setup: &Setup, config: &StageConfig, state: &DataState) -> Result<Self> {
        let open = || setup.loader.parts(state, config.micro_batch());
        let again = config.reads_twice().then(open).transpose()?;
        Ok(Self { parts: open()?, again })
    }
}

/// The parts of one step, without those of which nothing is left.
struct StepParts<'a> {
    batches: &'a mut Batches,
    step: u64,
    /// Number of the next part.
    number: u64,
    samples: usize,
    end: Option<(u64, DataState)>,
}

impl<'a> StepParts<'a> {
    fn new(batches: &'a mut Batches, step: u64) -> Self {
        Self { batches, step, number: 0, samples: 0, end: None }
    }

    fn taken(self) -> Result<Taken> {
        let (epoch, state_after) = self.end.ok_or(Error::NoMoreData { step: self.step })?;
        Ok(Taken { samples: self.samples, epoch, state_after })
    }
}

impl Iterator for StepParts<'_> {
    /// A part with its number in the step.
    type Item = Result<(u64, Batch)>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.end.is_none() {
            let part = match self.batches.next() {
                None => return Some(Err(Error::NoMoreData { step: self.step })),
                Some(Err(error)) => return Some(Err(error.into())),
                Some(Ok(part)) => part,
            };
            self.number += 1;
            self.samples += part.keys.len();
            if part.ends_batch {
                self.end = Some((part.epoch, part.state_after.clone()));
            }
            if !part.keys.is_empty() {
                return Some(Ok((self.number - 1, part)));
            }
        }
        None
    }
}

/// The loss of the next batch of `feed` and its gradients. `step` picks the random numbers of mixup and dropout;
/// `progress` hears of locked towers at work.
pub(crate) fn outcome(
    setup: &Setup,
    config: &StageConfig,
    feed: &mut Feed,
    step: u64,
    progress: &mut Progress,
) -> Result<(Outcome, Taken)> {
    let mut parts = StepParts::new(&mut feed.parts, step);
    let outcome = match (&setup.learner.model, &setup.texts) {
        (Model::Clip(clip), Some(Reader::Clip(texts))) => {
            let learns = [Part::Vision, Part::Text]
                .map(|part| setup.rules.iter().any(|r| Part::of(&r.parameter) == part));
            let pass = learns.map(|learns| {
                let checkpoints_blocks = learns && config.grad_checkpointing;
                let statistics =
                    if learns { NormStatistics::Batch } else { NormStatistics::Running };
                Pass { statistics, checkpoints_blocks, ..Pass::default() }
            });
            let image = |part: &Batch| -> Result<Tensor> {
                Ok(clip.encode_image_by(&pixels(part)?, pass[0])?)
            };
            let text = |part: &Batch| -> Result<Tensor> {
                let ids = texts.encode(&part.captions)?.ids;
                Ok(clip.encode_text_by(&ids, part.captions.len(), pass[1])?)
            };
            let features = |part: Result<(u64, Batch)>| {
                let (_, part) = part?;
                Ok([image(&part)?, text(&part)?])
            };
            let with_gradients = |part: Result<(u64, Batch)>| {
                let (_, part) = part?;
                let nothing = Tensor::zeros(&[part.keys.len(), 1]);
                let image = if learns[0] { image(&part)? } else { nothing.clone() };
                Ok([image, if learns[1] { text(&part)? } else { nothing }])
            };
            let mut again = feed
                .again
                .as_mut()
                .map(|batches| StepParts::new(batches, step).map(with_gradients));
            let again = again.as_mut().map(|again| again as &mut dyn Iterator<Item = _>);
            let scale = clip.logit_scale().tensor();
            contrastive(&mut parts.by_ref().map(features), again, learns, &scale)?
        }
        (Model::Lit(lit), Some(Reader::Lit(texts))) => {
            let (dataset, processor) = (setup.loader.dataset(), &setup.learner.processor);
            let progress = RefCell::new(progress);
            // Nothing if none of the pictures can be read.
            let features = |part: Result<(u64, Batch)>| {
                let (_, mut part) = part?;
                let mut told = |text: &str| progress.borrow_mut().within_step(text);
                let (places, seen) =
                    setup.pictures.features(lit, dataset, processor, &part.indices, &mut told)?;
                let captions = places.iter().map(|i| std::mem::take(&mut part.captions[*i]));
                let read = texts.features(lit, &captions.collect::<Vec<_>>())?;
                let is_empty = places.is_empty();
                let both = || Ok([lit.project_images(&seen)?, lit.project_texts(&read)?]);
                (!is_empty).then(both).transpose()
            };
            let features = |part| features(part).transpose();
            let mut again = feed
                .again
                .as_mut()
                .map(|batches| StepParts::new(batches, step).filter_map(&features));
            let again = again.as_mut().map(|again| again as &mut dyn Iterator<Item = _>);
            let scale = lit.logit_scale().tensor();
            contrastive(&mut parts.by_ref().filter_map(&features), again, [true; 2], &scale)?
        }
        (Model::Vit(_) | Model::Hybrid(_) | Model::LocalVit(_), _) => {
            let logits = |part: Result<(u64, Batch)>| {
                let (number, mut part) = part?;
                let targets = targets(setup, config, &mut part, (step, number))?;
                let pass = Pass {
                    checkpoints_blocks: config.grad_checkpointing,
                    dropout: Dropout::new(config.dropout, config.seed, step, number),
                    ..Pass::default()
                };
                Ok((setup.learner.logits(&pixels(&part)?, pass)?, targets))
            };
            supervised(config.global_batch_size, &mut parts.by_ref().map(logits))?
        }
        (other, _) => {
            let problem = format!("{} cannot be trained", other.kind());
            return Err(Error::Unfit { key: "model.family", problem });
        }
    };
    Ok((outcome, parts.taken()?))
}

/// What a classifier is to say of a part of a step; with mixup the pictures change as well.
fn targets(
    setup: &Setup,
    config: &StageConfig,
    part: &mut Batch,
    (step, number): (u64, u64),
) -> Result<Targets> {
    if config.mixup == 0.0 {
        return Ok(Targets::Classes(part.labels[..].into(), config.label_smoothing));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    // A step has fewer parts than this.
    rng.set_stream((step << 32) + number);
    let (classes, smoothing) = (setup.class_count, config.label_smoothing);
    mixup(&mut part.pixels, &part.labels, classes, config.mixup, smoothing, &mut rng)
}

/// `[n, 3, img_h, img_w]`.
fn pixels(part: &Batch) -> Result<Tensor> {
    let (height, width) = part.size;
    Ok(Tensor::from_slice(&part.pixels, &[part.keys.len(), 3, height, width])?)
}

/// Keeps the temperature within what the paper allows.
pub(crate) fn clamp_temperature(setup: &Setup) {
    if let Some(scale) = setup.learner.parameters.get("logit_scale") {
        scale.update(|scale| scale[0] = scale[0].min(LARGEST_LOGIT_SCALE));
    }
}

/// An error that names where a loss that is not finite comes from: the first parameter with such
/// values, else the first with such a gradient.
pub(crate) fn check(outcome: &Outcome, rules: &[Rule], step: u64) -> Result<()> {
    if outcome.loss.is_finite() {
        return Ok(());
    }
    let is_broken = |tensor: &Tensor| !tensor.is_finite();
    let of_weights = rules.iter().find(|r| is_broken(&r.parameter.tensor()));
    let of_gradients = || {
        rules.iter().find(|r| outcome.gradients.get(&r.parameter.tensor()).is_some_and(is_broken))
    };
    let parameter = of_weights.or_else(of_gradients);
    let parameter = parameter.map_or("no parameter, so in the data", |r| r.parameter.name());
    Err(Error::NotFinite { what: "loss", step, parameter: parameter.to_owned() })
}
