//! What a run needs before its first step: data, model, vocabulary, and the plan that a dry run prints.

use crate::config::{Family, Stage, TrainConfig};
use crate::learner::Learner;
use crate::optimiser::Rule;
use crate::parts::{PartTable, rules, with_commas};
use crate::texts::{TextEncoder, VocabularyFiles, vocabulary};
use crate::{Error, Result};
use ocelli_data::dataset::{Dataset, Loader, LoaderConfig, Targets, View};
use ocelli_models::Model;
use ocelli_models::systems::clip::VisionConfig;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Everything that is made from a recipe.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) loader: Loader,
    pub(crate) classes: Vec<String>,
    /// Outputs of a classifier.
    pub(crate) class_count: usize,
    pub(crate) learner: Learner,
    pub(crate) texts: Option<TextEncoder>,
    pub(crate) vocabulary: VocabularyFiles,
    pub(crate) rules: Vec<Rule>,
    pub(crate) total_steps: u64,
}

impl Setup {
    /// From a recipe; `kept` is where an earlier part of the run left its vocabulary.
    pub(crate) fn new(config: &TrainConfig, kept: &Path) -> Result<Self> {
        let dataset = Arc::new(Dataset::open(&config.data.sources)?);
        let class_count = config.model.classes.unwrap_or(dataset.class_count());
        if config.model.family == Family::Vit && class_count < dataset.class_count().max(1) {
            let problem = format!(
                "{class_count} where the data has {} classes; set label_key or model.classes",
                dataset.class_count()
            );
            return Err(Error::Unfit { key: "model.classes", problem });
        }
        let (mut tokenizer, mut files) = (None, Vec::new());
        if config.model.family == Family::Clip {
            // A checkpoint brings its vocabulary.
            let (found, its_files) = match (&config.model.from, &config.model.tokenizer) {
                (Some(from), None) => vocabulary(Some(&own_vocabulary(from)), &dataset, kept)?,
                (_, given) => vocabulary(given.as_ref(), &dataset, kept)?,
            };
            (tokenizer, files) = (Some(found), its_files);
        }
        let vocab = tokenizer.as_ref().map_or(0, ocelli_data::text::ClipTokenizer::vocab_size);
        let learner = Learner::new(&config.model, class_count, vocab, config.train.seed)?;
        let texts = match (&learner.model, tokenizer) {
            (Model::Clip(clip), Some(tokenizer)) => {
                let sizes = clip.text().config();
                if sizes.vocab < tokenizer.vocab_size() {
                    let problem = format!(
                        "has {} ids, the model's token table {} rows; use the vocabulary it was \
                         trained with",
                        tokenizer.vocab_size(),
                        sizes.vocab
                    );
                    return Err(Error::Unfit { key: "model.tokenizer", problem });
                }
                Some(TextEncoder::new(tokenizer, sizes.context_length))
            }
            _ => None,
        };
        let rules = rules(&learner.parameters, &config.freeze, &config.optim)?;
        let is_contrastive = config.train.stage == Stage::Contrastive;
        let classes = dataset.classes().to_vec();
        let loader = Loader::new(
            dataset,
            LoaderConfig {
                batch_size: config.train.global_batch_size,
                threads: config.data.threads,
                seed: config.train.seed,
                shuffle: true,
                drop_last: true,
                epochs: None,
                on_broken: config.data.on_broken,
                targets: Targets { captions: is_contrastive, labels: !is_contrastive },
                view: View::Train {
                    size: learner.image_size(),
                    augment: config.data.augment.clone(),
                    mean: learner.processor.mean,
                    std: learner.processor.std,
                },
                cache: config.data.cache,
            },
        )?;
        let by_epochs = |epochs: f64| (epochs * loader.batches_per_epoch() as f64).round() as u64;
        let total_steps = config.train.epochs.map_or(config.train.steps.unwrap_or(1), by_epochs);
        let total_steps = total_steps.max(1);
        let vocabulary = files;
        Ok(Self { loader, classes, class_count, learner, texts, vocabulary, rules, total_steps })
    }

    pub(crate) fn table(&self, config: &TrainConfig) -> PartTable {
        PartTable::new(&self.learner.parameters, &self.rules, &config.optim)
    }

    pub(crate) fn plan(&self, config: &TrainConfig) -> Plan {
        let table = self.table(config);
        let moments = match config.optim.name {
            crate::config::OptimName::Adamw => 2,
            crate::config::OptimName::Sgd => 1,
        };
        let train = &config.train;
        let micro = train.micro_batch_size.unwrap_or(train.global_batch_size);
        let side = self.learner.image_size();
        Plan {
            samples: self.loader.dataset().len(),
            steps_per_epoch: self.loader.batches_per_epoch(),
            total_steps: self.total_steps,
            global_batch_size: train.global_batch_size,
            micro_batch_size: micro,
            weights: 4 * table.parameters(),
            gradients: 4 * table.learning(),
            moments: 4 * moments * table.learning(),
            activations: 4 * micro * values_of_a_sample(&self.learner.model),
            // Two batches wait while one is in use.
            pixels: 4 * 3 * side * side * train.global_batch_size * 3,
            cache: config.data.cache.map_or(0, |c| c.bytes as usize),
            table,
        }
    }
}

/// The vocabulary in a checkpoint's folder, or the published one.
fn own_vocabulary(from: &Path) -> crate::config::TokenizerConfig {
    let folder = if from.is_dir() { from } else { from.parent().unwrap_or(Path::new(".")) };
    let has = |name: &str| folder.join(name).is_file();
    if has("vocab.json") || has("tokenizer.json") {
        crate::config::TokenizerConfig::Path(folder.to_path_buf())
    } else {
        crate::config::TokenizerConfig::Clip
    }
}

/// Values that the tape keeps for one sample, roughly: in each block both inputs of the norms and
/// their results, queries, keys, values, the attended values, and the hidden layer twice.
fn values_of_a_sample(model: &Model) -> usize {
    let tower = |tokens: usize, width: usize, mlp_dim: usize, depth: usize| {
        tokens * depth * (8 * width + 2 * mlp_dim)
    };
    match model {
        Model::Vit(vit) => {
            let c = vit.config();
            tower(c.tokens(), c.width, c.mlp_dim, c.depth)
        }
        Model::Clip(clip) => {
            let c = clip.config();
            let text = tower(c.text.context_length, c.text.width, c.text.mlp_dim, c.text.depth);
            text + match &c.vision {
                VisionConfig::Vit(v) => tower(v.tokens(), v.width, v.mlp_dim, v.depth),
                // Each stage has a quarter of the places and twice the channels of the one before:
                // about six full-size maps of its first channels for each block of the first stage.
                VisionConfig::ResNet(v) => {
                    let places = (v.image_size / 4).pow(2);
                    let blocks: usize =
                        v.layers.iter().enumerate().map(|(i, n)| (n * 8) >> i).sum();
                    places * v.width * blocks * 2
                }
            }
        }
        _ => 0,
    }
}

/// What a run will do: what a dry run prints.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Parts, parameters, learning rates.
    pub table: PartTable,
    /// In all sources, each counted once.
    pub samples: usize,
    /// Optimiser steps of a pass over the data.
    pub steps_per_epoch: usize,
    /// Optimiser steps of the run.
    pub total_steps: u64,
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
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| format!("{} MiB", with_commas(bytes.div_ceil(1 << 20)));
        write!(f, "{}", self.table)?;
        writeln!(
            f,
            "\n{} samples, {} steps of {} ({} at once), {} steps an epoch",
            with_commas(self.samples),
            with_commas(self.total_steps as usize),
            with_commas(self.global_batch_size),
            with_commas(self.micro_batch_size),
            with_commas(self.steps_per_epoch),
        )?;
        let all = self.weights + self.gradients + self.moments + self.activations + self.pixels;
        writeln!(
            f,
            "memory about {}: weights {}, gradients {}, optimiser {}, activations {}, batches {}; \
             decoded pictures up to {}",
            mib(all),
            mib(self.weights),
            mib(self.gradients),
            mib(self.moments),
            mib(self.activations),
            mib(self.pixels),
            mib(self.cache),
        )
    }
}

/// What a run of `config` will do.
///
/// # Errors
/// If data or model cannot be opened.
pub fn plan(config: &TrainConfig) -> Result<Plan> {
    Ok(Setup::new(config, Path::new(""))?.plan(config))
}
