//! `ocelli bench`: how fast a model runs here.

mod pictures;
mod pipeline;
mod scaling;
mod text;

use crate::failure::Failure;
use crate::global::Global;
use crate::{memory, session, shapes};
use ocelli_data::image::Processor;
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::{BlockKind, Narrow};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Time a model on this machine.
///
/// With `--shape` the weights are random; the time does not depend on them. `--interactive` prints
/// `ready`, then answers each line N on standard input with N times in milliseconds, so that
/// several programs can be timed in turn. `--task pipeline` tells whether decoding or the tower is the
/// limit, and how many pictures a second `ocelli embed` looks at.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ocelli bench --shape vit-b16 --batch 8
  ocelli bench --shape vit-s16 --task train --batch 8 --json
  ocelli bench -m openai/clip-vit-base-patch32 --task encode
  ocelli bench --shape vit-b16 --task pipeline
  ocelli bench -m clip/ --task pipeline --fast-decode photos/
  ocelli bench --shape llama-1.1b --task decode --tokens 256 --dtype q4_0
  ocelli bench --shape vit-b16 --scaling")]
pub(crate) struct Args {
    /// Model: a folder, a weights file, or org/name[@revision] of the hub
    #[arg(short, long, conflicts_with = "shape")]
    model: Option<String>,
    /// Random weights of a published size: vit-b16, vit-s16, clip-l14, RN50, llama-1.1b, ...
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// What is timed
    #[arg(long, value_enum, default_value = "encode")]
    task: Task,
    #[command(flatten)]
    given: pipeline::Given,
    /// Pictures at once; for a pipeline 8, as `ocelli embed`, unless given
    #[arg(long, default_value_t = 1, default_value_if("task", "pipeline", "8"),
        value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Tokens of the prompt that is read, or that are there before the one that is timed
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Type of number that weights are held in
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Answer lines on standard input
    #[arg(long, conflicts_with = "json")]
    interactive: bool,
    /// Tell what 1 to 64 threads would take, from a run on one thread that is split for as many
    #[arg(long, conflicts_with = "interactive")]
    scaling: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    /// Pictures through the vision tower
    Encode,
    /// Pictures from the bytes of their files to vectors: decoding, the tower, and both overlapped
    Pipeline,
    /// A training step: forward, backward, AdamW
    Train,
    /// A prompt through a language model
    Prefill,
    /// One more token of an answer
    Decode,
}

impl Task {
    fn is_of_text(self) -> bool {
        matches!(self, Self::Prefill | Self::Decode)
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Dtype {
    /// 32 bits; files in blocks stay so
    F32,
    /// bf16 for both operands of linear layers, f32 for their sums
    Bf16,
    /// 8 bits with a scale for each output and each row
    Int8,
    /// 8 bits with a scale for 32 values, for language models
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits with a scale for 32 values, for language models
    #[value(name = "q4_0")]
    Q4_0,
}

impl Dtype {
    fn blocks(self) -> Option<BlockKind> {
        match self {
            Self::F32 | Self::Bf16 | Self::Int8 => None,
            Self::Q8_0 => Some(BlockKind::Q8_0),
            Self::Q4_0 => Some(BlockKind::Q4_0),
        }
    }

    fn narrow(self) -> Option<Narrow> {
        match self {
            Self::Bf16 => Some(Narrow::Bf16),
            Self::Int8 => Some(Narrow::Int8),
            _ => None,
        }
    }
}

/// What is timed.
enum Step {
    Pictures(pictures::Step),
    Pipeline(pipeline::Step),
    Text(text::Step),
}

impl Step {
    fn new(
        args: &Args,
        model: Model,
        parameters: &Parameters,
        processor: Option<Processor>,
    ) -> Result<Self, Failure> {
        if args.task.is_of_text() {
            return Ok(Self::Text(text::Step::new(args, model)?));
        }
        if args.dtype.blocks().is_some() {
            return Err(Failure::usage(
                "q8_0 and q4_0 are for language models: time them with --task prefill or decode",
            ));
        }
        if args.task == Task::Pipeline {
            return Ok(Self::Pipeline(pipeline::Step::new(args, model, processor)?));
        }
        pictures::check_memory(args, &model, parameters)?;
        Ok(Self::Pictures(pictures::Step::new(args, model, parameters)?))
    }

    fn run(&mut self) -> Result<(), Failure> {
        match self {
            Self::Pictures(step) => step.run(),
            Self::Pipeline(step) => step.times(1).map(drop),
            Self::Text(step) => step.run(),
        }
    }

    /// Milliseconds of each of `count` runs.
    fn times(&mut self, count: usize) -> Result<Vec<f64>, Failure> {
        match self {
            Self::Pipeline(step) => step.times(count),
            _ => (0..count).map(|_| self.timed()).collect(),
        }
    }

    /// Milliseconds of a run.
    fn timed(&mut self) -> Result<f64, Failure> {
        let start = Instant::now();
        self.run()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Tokens of a run for each of the batch.
    fn tokens(&self) -> usize {
        match self {
            Self::Pictures(step) => step.tokens,
            Self::Pipeline(_) => 0,
            Self::Text(step) => step.tokens(),
        }
    }
}

/// Runs that a median is taken over, unless they would take longer than [`SECONDS`].
const RUNS: usize = 30;
const SECONDS: f64 = 20.0;

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    check(args)?;
    let (model, parameters, processor) = model(global, args)?;
    if let Some(kind) = args.dtype.narrow() {
        parameters.narrow(kind);
    }
    let mut step = Step::new(args, model, &parameters, processor)?;
    // Warms caches; packs weights, which are packed when they are used again.
    step.run()?;
    step.run()?;
    if args.interactive {
        return answer(&mut step);
    }
    if let Step::Pipeline(step) = &step {
        return step.report(args.json);
    }
    if args.scaling {
        return say(&scaling::table(&mut step, args.json)?);
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (times.len() < RUNS && start.elapsed().as_secs_f64() < SECONDS) {
        times.push(step.timed()?);
    }
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let rss = memory::peak().unwrap_or(0) as f64 / f64::from(1 << 20);
    let per_second = f64::from(args.batch) * 1e3 / median;
    let tokens = per_second * step.tokens() as f64;
    let line = if args.json {
        serde_json::json!({
            "median_ms": median, "best_ms": best, "runs": times.len(),
            "peak_rss_mib": rss, "tokens_per_s": tokens,
        })
        .to_string()
    } else {
        let rate = match step {
            Step::Pictures(_) | Step::Pipeline(_) => format!("{per_second:.1} images/s"),
            Step::Text(_) => format!("{tokens:.1} tokens/s"),
        };
        format!(
            "median {median:.1} ms, best {best:.1} ms over {} runs; {rate}; peak memory {rss:.0} MiB",
            times.len()
        )
    };
    say(&line)
}

/// That options fit the task.
fn check(args: &Args) -> Result<(), Failure> {
    let is_pipeline = args.task == Task::Pipeline;
    if is_pipeline && args.scaling {
        return Err(Failure::usage(
            "--scaling is for the other tasks: leave it out or --task pipeline",
        ));
    }
    if args.given.is_any() && !is_pipeline {
        return Err(Failure::usage(
            "pictures, --picture and --fast-decode belong to --task pipeline: add it or leave them out",
        ));
    }
    Ok(())
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
        let times: Vec<String> = step.times(n)?.iter().map(|ms| format!("{ms:.4}")).collect();
        say(&times.join(" "))?;
    }
    Ok(())
}

/// A model, its parameters, and how pictures are prepared for it if it is asked to look at any.
type Loaded = (Model, Parameters, Option<Processor>);

fn model(global: &Global, args: &Args) -> Result<Loaded, Failure> {
    let shape = match (&args.model, &args.shape) {
        (Some(model), _) => {
            let path = session::resolve(global, model)?;
            let files = Files::find(&path, None)?;
            let files = match args.dtype.blocks() {
                Some(kind) => files.quantised(kind),
                None => files,
            };
            let mut processor = None;
            if args.task == Task::Pipeline {
                let measured = files.measure(HeadCounts::default())?;
                pipeline::check(&measured.model)?;
                pictures::check_memory(args, &measured.model, &measured.parameters)?;
                processor = Some(files.processor()?);
            }
            let opened = files.open(HeadCounts::default())?;
            return Ok((opened.model, opened.parameters, processor));
        }
        (None, Some(shape)) => shape,
        (None, None) => {
            return Err(Failure::usage(
                "nothing to time: give a model with -m, or a published size such as --shape vit-b16",
            ));
        }
    };
    // Counted before they are drawn, which takes minutes for a large language model.
    let counted = Builder::zeros();
    let sizes = shapes::build(shape, &counted)?;
    let counted = counted.finish().map_err(ocelli_models::Error::from)?;
    if args.task.is_of_text() {
        text::check(&sizes)?;
    } else {
        if args.task == Task::Pipeline {
            pipeline::check(&sizes)?;
        }
        pictures::check_memory(args, &sizes, &counted)?;
    }
    let b = match args.dtype.blocks() {
        Some(kind) => Builder::random_in_blocks(0, kind),
        None => Builder::random(0),
    };
    let model = shapes::build(shape, &b)?;
    let parameters = b.finish().map_err(ocelli_models::Error::from)?;
    let processor = model.usual_processor();
    Ok((model, parameters, processor))
}
