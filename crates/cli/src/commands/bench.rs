//! `ocelli bench`: how fast a model runs here.

use super::model::cost;
use crate::failure::Failure;
use crate::global::Global;
use crate::{memory, session, shapes};
use ocelli_kernels::optimiser::{AdamW, adamw};
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::{Builder, Parameter, Parameters};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Instant;

/// Time a model on this machine.
///
/// With `--shape` the weights are random; the time does not depend on them. `--interactive` prints
/// `ready`, then answers each line N on standard input with N times in milliseconds, so that
/// several programs can be timed in turn.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ocelli bench --shape vit-b16 --batch 8
  ocelli bench --shape vit-s16 --task train --batch 8 --json
  ocelli bench -m openai/clip-vit-base-patch32 --task encode")]
pub(crate) struct Args {
    /// Model: a folder, a weights file, or org/name[@revision] of the hub
    #[arg(short, long, conflicts_with = "shape")]
    model: Option<String>,
    /// Random weights of a published size: vit-b16, vit-s16, clip-l14, ViT-B/32, RN50, ...
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// What is timed
    #[arg(long, value_enum, default_value = "encode")]
    task: Task,
    /// Pictures at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Type of number that is computed in
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Answer lines on standard input
    #[arg(long, conflicts_with = "json")]
    interactive: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    /// Pictures through the vision tower
    Encode,
    /// A training step: forward, backward, AdamW
    Train,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    F32,
}

/// Runs that a median is taken over, unless they would take longer than [`SECONDS`].
const RUNS: usize = 30;
const SECONDS: f64 = 20.0;

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let Dtype::F32 = args.dtype;
    let (model, parameters) = model(global, args)?;
    check_memory(args, &model, &parameters)?;
    let mut step = Step::new(args, model, &parameters)?;
    step.run()?; // Packs weights, warms caches.
    if args.interactive {
        return answer(&mut step);
    }
    step.run()?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (times.len() < RUNS && start.elapsed().as_secs_f64() < SECONDS) {
        times.push(step.timed()?);
    }
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let rss = memory::peak().unwrap_or(0) as f64 / f64::from(1 << 20);
    let per_second = f64::from(args.batch) * 1e3 / median;
    let line = if args.json {
        let tokens = per_second * step.tokens as f64;
        serde_json::json!({
            "median_ms": median, "best_ms": best, "runs": times.len(),
            "peak_rss_mib": rss, "tokens_per_s": tokens,
        })
        .to_string()
    } else {
        format!(
            "median {median:.1} ms, best {best:.1} ms over {} runs; {per_second:.1} images/s; peak memory {rss:.0} MiB",
            times.len()
        )
    };
    say(&line)
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|e| Failure::runtime(format!("cannot write the result: {e}")))
}

fn answer(step: &mut Step) -> Result<(), Failure> {
    say("ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Failure::input(format!("cannot read standard input: {e}")))?;
        let n: usize = line.trim().parse().map_err(|_| {
            Failure::input(format!("expected a number of runs on each line, got `{line}`"))
        })?;
        let times: Result<Vec<String>, Failure> =
            (0..n).map(|_| step.timed().map(|ms| format!("{ms:.4}"))).collect();
        say(&times?.join(" "))?;
    }
    Ok(())
}

fn model(global: &Global, args: &Args) -> Result<(Model, Parameters), Failure> {
    let shape = match (&args.model, &args.shape) {
        (Some(model), _) => {
            let path = session::resolve(global, model)?;
            let opened = Files::find(&path, None)?.open(HeadCounts::default())?;
            return Ok((opened.model, opened.parameters));
        }
        (None, Some(shape)) => shape,
        (None, None) => {
            return Err(Failure::usage(
                "nothing to time: give a model with -m, or a published size such as --shape vit-b16",
            ));
        }
    };
    let b = Builder::random(0);
    let model = shapes::build(shape, &b)?;
    let parameters = b.finish().map_err(ocelli_models::Error::from)?;
    Ok((model, parameters))
}

/// Whether the batch fits into memory: what is allocated is touched, so too much of it would end
/// the program, or others, without a word.
fn check_memory(args: &Args, model: &Model, parameters: &Parameters) -> Result<(), Failure> {
    let Some((cost, (img_h, img_w))) = cost::picture(model, parameters) else { return Ok(()) };
    let trains = args.task == Task::Train;
    let of_text = cost::text(model).filter(|_| trains).map_or(0, |text| text.kept);
    let between = if trains { cost.kept + of_text } else { cost.values };
    let needed = 4 * u64::from(args.batch) * (3 * (img_h * img_w) as u64 + between);
    // Training adds gradients and two moments to the weights.
    let copies = if trains { 3 } else { 0 };
    let what = format!("a batch of {}", args.batch);
    memory::check(needed + 4 * copies * parameters.elements() as u64, &what, "lower --batch")
}

fn blind() -> ocelli_models::Error {
    let (what, needs) = ("timing", "a model that sees");
    ocelli_models::Error::Unsuitable { what, needs, is: "a BERT".to_owned() }
}

fn locked() -> ocelli_models::Error {
    let (what, needs) = ("timing a training step", "a model whose towers learn");
    ocelli_models::Error::Unsuitable { what, needs, is: "a LiT".to_owned() }
}

/// What is timed.
struct Step {
    model: Model,
    pixels: Tensor,
    /// Labels and moments, when training.
    training: Option<Training>,
    /// Tokens of a picture.
    tokens: usize,
}

struct Training {
    labels: Targets,
    parameters: Vec<Parameter>,
    moments: Vec<[Vec<f32>; 2]>,
    step: u64,
}

impl Step {
    fn new(args: &Args, model: Model, parameters: &Parameters) -> Result<Self, Failure> {
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
            _ => return Err(blind().into()),
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

    fn timed(&mut self) -> Result<f64, Failure> {
        let start = Instant::now();
        self.run()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    fn run(&mut self) -> Result<(), Failure> {
        let Some(training) = &mut self.training else {
            no_grad(|| match &self.model {
                Model::Vit(m) => m.forward(&self.pixels),
                Model::Hybrid(m) => m.forward(&self.pixels),
                Model::LocalVit(m) => m.forward(&self.pixels),
                Model::Clip(m) => m.encode_image(&self.pixels),
                Model::Lit(m) => m.encode_image(&self.pixels),
                _ => Err(blind()),
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
            _ => return Err(blind().into()),
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
