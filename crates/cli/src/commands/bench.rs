//! `ocelli bench`: how fast a model runs here.

use crate::failure::Failure;
use ocelli_kernels::optimiser::{AdamW, adamw};
use ocelli_models::systems::clip::{Clip, ClipConfig};
use ocelli_models::vision::vit::{Vit, VitConfig};
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::{Builder, Parameter, Parameters};
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::io::{BufRead, Write};
use std::path::PathBuf;
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
  ocelli bench -m models/vit --task encode")]
pub(crate) struct Args {
    /// Model directory or file
    #[arg(short, long, conflicts_with = "shape", required_unless_present = "shape")]
    model: Option<PathBuf>,
    /// Random weights of a published size
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// What is timed
    #[arg(long, value_enum, default_value = "encode")]
    task: Task,
    /// Pictures at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
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
enum Shape {
    VitB16,
    VitS16,
    ClipL14,
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

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let Dtype::F32 = args.dtype;
    let (model, parameters) = model(args)?;
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
    let rss = peak_rss_mib().unwrap_or(0.0);
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

fn model(args: &Args) -> Result<(Model, Parameters), Failure> {
    if let Some(path) = &args.model {
        let opened = Files::find(path, None)?.open(HeadCounts::default())?;
        return Ok((opened.model, opened.parameters));
    }
    let b = Builder::random(0);
    let vit = |name: &str| {
        let config = VitConfig::variant(name).expect("a published size");
        Model::Vit(Box::new(Vit::new(&config, &b)))
    };
    let model = match args.shape {
        Some(Shape::VitS16) => vit("S/16"),
        Some(Shape::ClipL14) => {
            let config = ClipConfig::variant("ViT-L/14").expect("a published size");
            Model::Clip(Box::new(Clip::new(&config, &b)))
        }
        _ => vit("B/16"),
    };
    let parameters = b.finish().map_err(ocelli_models::Error::from)?;
    Ok((model, parameters))
}

fn blind() -> ocelli_models::Error {
    let (what, needs) = ("timing", "a model that sees");
    ocelli_models::Error::Unsuitable { what, needs, is: "a BERT".to_owned() }
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
        let batch = usize::from(args.batch);
        let ((height, width), tokens) = match &model {
            Model::Vit(m) => (m.config().image_size, m.config().tokens()),
            Model::Hybrid(m) => (m.image_size, m.vit.config().tokens()),
            Model::LocalVit(m) => (m.config().image_size, m.config().tokens()),
            Model::Clip(m) => {
                let vision = &m.config().vision;
                (vision.image_size(), vision.tokens())
            }
            Model::Bert(_) => return Err(blind().into()),
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
                Model::Bert(_) => Err(blind()),
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
            Model::Bert(_) => return Err(blind().into()),
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

/// The most memory that this process has held, in MiB, where the system tells.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
