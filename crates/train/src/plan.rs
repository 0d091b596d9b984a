//! What a run will do and cost: what a dry run prints, whether or not the data are there yet.

use crate::config::{Family, OptimName, TokenizerConfig, TrainConfig};
use crate::learner::Learner;
use crate::optimiser::Rule;
use crate::parts::{Part, PartTable, rules, with_commas};
use crate::{Error, Result};
use ocelli_data::dataset::{Dataset, Sampler, SourceConfig};
use ocelli_data::text::{Behaviour, ClipTokenizer};
use ocelli_models::Model;
use ocelli_models::cost::{self, Cost};
use ocelli_nn::Builder;
use ocelli_tensor::{Tensor, no_grad};
use std::fmt;
use std::time::Instant;

/// How fast a training step is, as a share of the speed of a lone matrix product: what a step of
/// ViT-S/16 was measured to reach.
const SHARE_OF_PRODUCT: f64 = 0.7;

/// What a run will do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Parts, parameters, learning rates.
    pub table: PartTable,
    /// What is known of the data.
    pub data: Option<DataSize>,
    /// Files and folders that the recipe names and that are not there, each with what it is.
    pub missing: Vec<String>,
    /// Optimiser steps of the run; unknown where they are counted in epochs of missing data.
    pub total_steps: Option<u64>,
    /// Samples of a step.
    pub global_batch_size: usize,
    /// Samples in memory at once.
    pub micro_batch_size: usize,
    /// Bytes of parameters.
    pub weights: usize,
    /// Bytes of gradients.
    pub gradients: usize,
    /// Bytes of the optimiser.
    pub moments: usize,
    /// Bytes that the tape keeps, about.
    pub activations: usize,
    /// Bytes of batches under way.
    pub pixels: usize,
    /// Most bytes of decoded pictures.
    pub cache: usize,
    /// Operations of an optimiser step, a multiply-add counted as two.
    pub operations: f64,
    /// Operations that this machine does in a second of training; 0 where they were not measured.
    pub speed: f64,
}

/// How much data there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSize {
    /// In all sources, each counted once.
    pub samples: usize,
    /// Optimiser steps of a pass over the data.
    pub steps_per_epoch: usize,
}

impl Plan {
    pub(crate) fn new(
        config: &TrainConfig,
        learner: &Learner,
        rules: &[Rule],
        data: Option<DataSize>,
    ) -> Self {
        let table = PartTable::new(&learner.parameters, rules, &config.optim);
        let moments = match config.optim.name {
            OptimName::Adamw => 2,
            OptimName::Sgd => 1,
        };
        let train = &config.train;
        let (global, micro) = (train.global_batch_size, train.micro_batch());
        let (vision, text, parts) = costs(&learner.model, train.grad_checkpointing);
        let learns = |part| rules.iter().any(|r| Part::of(&r.parameter) == part);
        // A gradient costs two forward passes; a contrastive step in parts needs the features of all
        // of them first, and what the tape does not keep is computed again.
        let again = u8::from(train.reads_twice()) + u8::from(train.grad_checkpointing);
        let passes = |part| if learns(part) { f64::from(3 + again) } else { 1.0 };
        let operations = |cost: Cost, part| cost.operations as f64 * passes(part) * global as f64;
        let side = learner.image_size();
        // Two parts wait while one is in use; what locked towers see is not in the parts.
        let under_way = match learner.model {
            Model::Lit(_) => 0,
            _ => 3 * micro * (1 + usize::from(train.reads_twice())),
        };
        Self {
            data,
            missing: Vec::new(),
            total_steps: total_steps(config, data),
            global_batch_size: global,
            micro_batch_size: micro,
            weights: 4 * table.parameters(),
            gradients: 4 * table.learning(),
            moments: 4 * moments * table.learning(),
            activations: 4 * micro * (vision.kept + text.kept) as usize,
            pixels: 4 * 3 * side * side * under_way,
            cache: config.data.cache.map_or(0, |c| c.bytes as usize),
            operations: operations(vision, parts[0]) + operations(text, parts[1]),
            speed: 0.0,
            table,
        }
    }

    /// Bytes that training takes, about, without decoded pictures, which are kept only if set.
    pub fn memory(&self) -> usize {
        self.weights + self.gradients + self.moments + self.activations + self.pixels
    }
}

/// What a picture and a text cost a step, and the parts of the model that decide whether they cost a
/// gradient. Locked towers are asked once about each, which is not of a step.
fn costs(model: &Model, is_checkpointed: bool) -> (Cost, Cost, [Part; 2]) {
    if let Model::Lit(lit) = model {
        let [vision, text] = cost::of_projections(lit);
        return (vision, text, [Part::Head; 2]);
    }
    let vision = cost::of_picture(model, is_checkpointed).map_or(Cost::default(), |(cost, _)| cost);
    let text = cost::of_text(model, is_checkpointed).unwrap_or_default();
    (vision, text, [Part::Vision, Part::Text])
}

/// Optimiser steps of a run.
pub(crate) fn total_steps(config: &TrainConfig, data: Option<DataSize>) -> Option<u64> {
    let steps = match config.train.epochs {
        Some(epochs) => (epochs * data?.steps_per_epoch as f64).round() as u64,
        None => config.train.steps.unwrap_or(1),
    };
    Some(steps.max(1))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| format!("{} MiB", with_commas(bytes.div_ceil(1 << 20)));
        writeln!(f, "{}", self.table)?;
        for missing in &self.missing {
            writeln!(f, "{missing}")?;
        }
        let or_unknown = |n: Option<usize>| n.map_or("unknown".to_owned(), with_commas);
        let samples = or_unknown(self.data.map(|d| d.samples));
        let steps = or_unknown(self.total_steps.map(|n| n as usize));
        let an_epoch = or_unknown(self.data.map(|d| d.steps_per_epoch));
        let (global, micro) = (self.global_batch_size, self.micro_batch_size);
        writeln!(
            f,
            "samples {samples}, steps {steps} of {} ({} at once), steps an epoch {an_epoch}",
            with_commas(global),
            with_commas(micro),
        )?;
        writeln!(
            f,
            "memory about {}: weights {}, gradients {}, optimiser {}, activations {}, batches {}; \
             decoded pictures up to {}",
            mib(self.memory()),
            mib(self.weights),
            mib(self.gradients),
            mib(self.moments),
            mib(self.activations),
            mib(self.pixels),
            mib(self.cache),
        )?;
        if self.speed == 0.0 || self.operations == 0.0 {
            return Ok(());
        }
        let step = self.operations / self.speed;
        let all = self.total_steps.map(|n| format!(", {} in all", duration(step * n as f64)));
        writeln!(
            f,
            "time about {} a step{}: {:.3e} operations a step at {:.0} GFLOP/s, {:.0} % of what a \
             matrix product reaches here; reading and measuring come on top",
            duration(step),
            all.unwrap_or_default(),
            self.operations,
            self.speed / 1e9,
            SHARE_OF_PRODUCT * 100.0,
        )
    }
}

/// Seconds in the unit that suits them.
fn duration(seconds: f64) -> String {
    let units = [(86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")];
    let unit = units.into_iter().find(|(of, _)| seconds >= 2.0 * of);
    let (of, name) = unit.unwrap_or((1.0, "seconds"));
    let n = seconds / of;
    format!(
        "{n:.*} {name}",
        if n >= 100.0 {
            0
        } else if n >= 1.0 {
            1
        } else {
            3
        }
    )
}

/// What a run of `config` will do. Data, checkpoints and towers that are not there are named in the
/// plan; a missing checkpoint is taken to have the sizes of `model.variant`.
///
/// # Errors
/// If the recipe describes no model, what is there cannot be opened, or a checkpoint is missing and
/// no variant says its sizes.
pub fn plan(config: &TrainConfig) -> Result<Plan> {
    let mut missing = not_found(&config.data.sources)?;
    let dataset =
        if missing.is_empty() { Some(Dataset::open(&config.data.sources)?) } else { None };
    for set in config.eval.iter().flat_map(|eval| &eval.sets) {
        missing.extend(not_found(&set.sources)?);
    }
    missing.dedup();
    let mut has_towers = true;
    if let Some(towers) = &config.model.towers {
        let absent = [&towers.vision, &towers.text].into_iter().filter(|path| !path.exists());
        for path in absent {
            has_towers = false;
            missing.push(format!(
                "tower not found: {}; both are counted as DINOv2-S/14 and MiniLM-L6",
                path.display()
            ));
        }
    }
    let mut model = config.model.clone();
    if let Some(from) = model.from.take_if(|from| !from.exists()) {
        if model.variant.is_none() && model.vision.is_none() && model.resnet.is_none() {
            let problem =
                format!("{} is not there; train it first, or set model.variant", from.display());
            return Err(Error::Unfit { key: "model.from", problem });
        }
        missing.push(format!("model not found: {}", from.display()));
    }
    let classes = model.classes.or(dataset.as_ref().map(Dataset::class_count)).unwrap_or(0);
    if classes == 0 && model.family.is_classifier() {
        missing.push("classes not known: the classifier is not counted".to_owned());
    }
    let vocab = vocabulary_size(config, &mut missing)?;
    let learner = if has_towers {
        Learner::new(&model, classes, vocab, &Builder::zeros())?
    } else {
        Learner::on_absent_towers(&model)?
    };
    let rules = rules(&learner.parameters, &config.freeze, &config.optim)?;
    let data = match &dataset {
        None => None,
        Some(dataset) => {
            let samples = Sampler::new(dataset, config.train.seed, true)?.epoch_len();
            let steps_per_epoch = samples / config.train.global_batch_size;
            Some(DataSize { samples: dataset.len(), steps_per_epoch })
        }
    };
    Ok(Plan { missing, speed: speed()?, ..Plan::new(config, &learner, &rules, data) })
}

/// The first file of each source that is not there.
fn not_found(sources: &[SourceConfig]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for source in sources {
        let path = source.missing_path()?;
        missing.extend(path.map(|path| format!("data not found: {}", path.display())));
    }
    Ok(missing)
}

/// Rows of the token table: at most this many where the vocabulary is still to be learned.
fn vocabulary_size(config: &TrainConfig, missing: &mut Vec<String>) -> Result<usize> {
    if config.model.family != Family::Clip {
        return Ok(0);
    }
    match &config.model.tokenizer {
        Some(TokenizerConfig::TrainVocabSize(size)) => return Ok(*size),
        Some(TokenizerConfig::Path(path)) if path.exists() => {
            return Ok(ClipTokenizer::load(path, Behaviour::OpenAi)?.vocab_size());
        }
        Some(TokenizerConfig::Path(path)) => {
            missing.push(format!("vocabulary not found: {}", path.display()));
        }
        None | Some(TokenizerConfig::Clip) => {}
    }
    Ok(ClipTokenizer::builtin(Behaviour::OpenAi).vocab_size())
}

/// Operations that training does in a second, from a matrix product that takes a moment.
fn speed() -> Result<f64> {
    let (rows, inputs, outputs) = (384, 768, 1536);
    let fill = |n: usize| (0..n).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<_>>();
    let x = Tensor::from_slice(&fill(rows * inputs), &[rows, inputs])?;
    let w = Tensor::from_slice(&fill(inputs * outputs), &[outputs, inputs])?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        no_grad(|| x.linear(&w, None))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(SHARE_OF_PRODUCT * 2.0 * (rows * inputs * outputs) as f64 / best.max(1e-9))
}
