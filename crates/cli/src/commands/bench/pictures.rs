//! Pictures through a tower, and training steps on them.

use super::{Args, Task};
use crate::failure::Failure;
use crate::memory;
use crate::pictures::BATCHES_AHEAD;
use ocelli_kernels::optimiser::{AdamW, adamw};
use ocelli_models::{Model, cost};
use ocelli_nn::{Parameter, Parameters};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::sync::Arc;

/// Whether the batch fits into memory: what is allocated is touched, so too much of it would end
/// the program, or others, without a word.
pub(super) fn check_memory(
    args: &Args,
    model: &Model,
    parameters: &Parameters,
) -> Result<(), Failure> {
    let is_pipeline = args.task == Task::Pipeline;
    let Some((cost, (img_h, img_w))) = cost::of_picture(model, false) else {
        // Of few that `ocelli embed` takes the need is not known.
        return if is_pipeline { Ok(()) } else { Err(blind(model).into()) };
    };
    let trains = args.task == Task::Train;
    let batches = if is_pipeline { 1 + BATCHES_AHEAD } else { 1 };
    let of_text = cost::of_text(model, false).filter(|_| trains).map_or(0, |text| text.kept);
    let between = if trains { cost.kept + of_text } else { cost.values };
    let pixels = (batches * 3 * img_h * img_w) as u64;
    let needed = 4 * u64::from(args.batch) * (pixels + between);
    // Training adds gradients and two moments to the weights.
    let copies = if trains { 3 } else { 0 };
    let what = format!("a batch of {}", args.batch);
    memory::check(needed + 4 * copies * parameters.elements() as u64, &what, "lower --batch")
}

fn blind(model: &Model) -> ocelli_models::Error {
    let (what, needs) = ("timing", "a model that sees");
    ocelli_models::Error::Unsuitable { what, needs, is: model.kind().to_owned() }
}

fn locked() -> ocelli_models::Error {
    let (what, needs) = ("timing a training step", "a model whose towers learn");
    ocelli_models::Error::Unsuitable { what, needs, is: "a LiT".to_owned() }
}

/// What is timed.
pub(super) struct Step {
    model: Model,
    pixels: Tensor,
    /// Labels and moments, when training.
    training: Option<Training>,
    /// Tokens of a picture.
    pub(super) tokens: usize,
}

struct Training {
    labels: Targets,
    parameters: Vec<Parameter>,
    moments: Vec<[Vec<f32>; 2]>,
    step: u64,
}

impl Step {
    pub(super) fn new(args: &Args, model: Model, parameters: &Parameters) -> Result<Self, Failure> {
        let batch = args.batch as usize;
        let ((height, width), tokens) = match &model {
            Model::Vit(m) => (m.config().image_size, m.config().tokens()),
            Model::Hybrid(m) => (m.image_size, m.vit.config().tokens()),
            Model::LocalVit(m) => (m.config().image_size, m.config().tokens()),
            Model::Clip(m) => {
                let vision = &m.config().vision;
                (vision.image_size(), vision.tokens())
            }
            Model::Lit(m) => (m.config().vision.image_size, m.config().vision.tokens()),
            _ => return Err(blind(&model).into()),
        };
        let n = batch * 3 * height * width;
        let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect();
        let pixels = Tensor::from_slice(&values, &[batch, 3, height, width])?;
        let training = (args.task == Task::Train).then(|| {
            let parameters: Vec<Parameter> = parameters.trainable().cloned().collect();
            let zeros = |p: &Parameter| [vec![0.0; p.elements()], vec![0.0; p.elements()]];
            let moments = parameters.iter().map(zeros).collect();
            let labels = Targets::Classes((0..batch as u32).collect(), 0.0);
            Training { labels, parameters, moments, step: 0 }
        });
        Ok(Self { model, pixels, training, tokens })
    }

    pub(super) fn run(&mut self) -> Result<(), Failure> {
        let Some(training) = &mut self.training else {
            no_grad(|| match &self.model {
                Model::Vit(m) => m.forward(&self.pixels),
                Model::Hybrid(m) => m.forward(&self.pixels),
                Model::LocalVit(m) => m.forward(&self.pixels),
                Model::Clip(m) => m.encode_image(&self.pixels),
                Model::Lit(m) => m.encode_image(&self.pixels),
                model => Err(blind(model)),
            })?;
            return Ok(());
        };
        let loss = match &self.model {
            Model::Vit(m) => m.loss(&self.pixels, &training.labels)?,
            Model::Hybrid(m) => m.loss(&self.pixels, &training.labels)?,
            Model::LocalVit(m) => m.loss(&self.pixels, &training.labels)?,
            Model::Clip(m) => {
                let (batch, text) = (self.pixels.shape()[0], m.config().text.context_length);
                let ids: Arc<[u32]> = (0..batch * text).map(|i| (i % 400) as u32).collect();
                m.loss(&self.pixels, &ids)?
            }
            Model::Lit(_) => return Err(locked().into()),
            model => return Err(blind(model).into()),
        };
        let mut grads = loss.backward()?;
        training.step += 1;
        let settings = AdamW {
            lr: 1e-4,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.05,
            step: training.step,
            grad_scale: 1.0,
        };
        for (p, [m, v]) in training.parameters.iter().zip(&mut training.moments) {
            let Some(grad) = grads.take(&p.tensor()) else { continue };
            p.update(|weights| adamw(settings, weights, grad.values(), m, v));
        }
        Ok(())
    }
}
