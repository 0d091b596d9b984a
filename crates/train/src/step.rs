//! From a batch to a loss and its gradients, for the model and the stage of a run.

use crate::config::StageConfig;
use crate::objective::{Outcome, Tower, contrastive, mixup, supervised};
use crate::optimiser::Rule;
use crate::parts::Part;
use crate::setup::Setup;
use crate::{Error, Result};
use ocelli_data::dataset::Batch;
use ocelli_models::{Model, Pass};
use ocelli_nn::layers::NormStatistics;
use ocelli_tensor::{Targets, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::ops::Range;

/// exp of this is 100, the most that the cosines are multiplied by (Radford et al. 2021, §2.5).
const LARGEST_LOGIT_SCALE: f32 = 4.605_170_2;

/// The loss of a batch and its gradients. `step` picks the random numbers of mixup.
pub(crate) fn outcome(
    setup: &Setup,
    config: &StageConfig,
    mut batch: Batch,
    step: u64,
) -> Result<Outcome> {
    let samples = batch.keys.len();
    let micro = config.micro_batch();
    match (&setup.learner.model, &setup.texts) {
        (Model::Clip(clip), Some(texts)) => {
            let ids = texts.encode(&batch.captions)?;
            let learns = |part| setup.rules.iter().any(|r| Part::of(&r.parameter) == part);
            let pass = |part| match learns(part) {
                true => Pass {
                    statistics: NormStatistics::Batch,
                    checkpoints_blocks: config.grad_checkpointing,
                },
                false => Pass::default(),
            };
            let image =
                |range| Ok(clip.encode_image_by(&pixels(&batch, range)?, pass(Part::Vision))?);
            let text = |range: Range<usize>| {
                let ids = ids.range(range.clone());
                Ok(clip.encode_text_by(&ids, range.len(), pass(Part::Text))?)
            };
            let images = Tower { encode: &image, learns: learns(Part::Vision) };
            let texts = Tower { encode: &text, learns: learns(Part::Text) };
            contrastive(samples, micro, &images, &texts, &clip.logit_scale().tensor())
        }
        (Model::Vit(_) | Model::Hybrid(_) | Model::LocalVit(_), _) => {
            let targets = if config.mixup > 0.0 {
                let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
                rng.set_stream(step);
                let (classes, smoothing) = (setup.class_count, config.label_smoothing);
                mixup(&mut batch.pixels, &batch.labels, classes, config.mixup, smoothing, &mut rng)?
            } else {
                Targets::Classes(batch.labels[..].into(), config.label_smoothing)
            };
            let pass = Pass { checkpoints_blocks: config.grad_checkpointing, ..Pass::default() };
            let logits = |range| setup.learner.logits(&pixels(&batch, range)?, pass);
            supervised(samples, micro, &logits, &targets)
        }
        (other, _) => {
            let problem = format!("{} cannot be trained", other.kind());
            Err(Error::Unfit { key: "model.family", problem })
        }
    }
}

/// `[range, 3, img_h, img_w]`.
fn pixels(batch: &Batch, range: Range<usize>) -> Result<Tensor> {
    let (height, width) = batch.size;
    let picture = 3 * height * width;
    let values = &batch.pixels[range.start * picture..range.end * picture];
    Ok(Tensor::from_slice(values, &[range.len(), 3, height, width])?)
}

/// Keeps the temperature within what the paper allows.
pub(crate) fn clamp_temperature(setup: &Setup) {
    if let Model::Clip(clip) = &setup.learner.model {
        clip.logit_scale().update(|scale| scale[0] = scale[0].min(LARGEST_LOGIT_SCALE));
    }
}

/// An error that names where a loss that is not finite comes from: the first parameter with such
/// values, else the first with such a gradient.
pub(crate) fn check(outcome: &Outcome, rules: &[Rule], step: u64) -> Result<()> {
    if outcome.loss.is_finite() {
        return Ok(());
    }
    let is_broken = |tensor: &Tensor| tensor.values().iter().any(|v| !v.is_finite());
    let of_weights = rules.iter().find(|r| is_broken(&r.parameter.tensor()));
    let of_gradients = || {
        rules.iter().find(|r| outcome.gradients.get(&r.parameter.tensor()).is_some_and(is_broken))
    };
    let parameter = of_weights.or_else(of_gradients);
    let parameter = parameter.map_or("no parameter, so in the data", |r| r.parameter.name());
    Err(Error::NotFinite { what: "loss", step, parameter: parameter.to_owned() })
}
