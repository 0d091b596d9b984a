//! What a run needs before its first step: data, model, vocabulary.

use crate::config::{Family, Precision, Stage, TrainConfig};
use crate::learner::Learner;
use crate::optimiser::Rule;
use crate::parts::rules;
use crate::plan::{DataSize, Plan, total_steps};
use crate::texts::{NamedFiles, TextEncoder, vocabulary};
use crate::towers::{LockedPictures, LockedTexts};
use crate::{Error, Result};
use ocelli_data::dataset::{Dataset, Loader, LoaderConfig, Sampler, Targets, View};
use ocelli_models::Model;
use ocelli_nn::Builder;
use ocelli_tensor::{Narrow, Tensor};
use std::path::Path;
use std::sync::Arc;

/// How texts become features.
#[derive(Debug)]
pub(crate) enum Reader {
    /// As ids, by a tower that may learn.
    Clip(Box<TextEncoder>),
    /// By a locked tower.
    Lit(Box<LockedTexts>),
}

/// Everything that is made from a recipe.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) loader: Loader,
    pub(crate) classes: Vec<String>,
    /// Outputs of a classifier.
    pub(crate) class_count: usize,
    pub(crate) learner: Learner,
    pub(crate) texts: Option<Reader>,
    /// What a locked vision tower sees in the training pictures.
    pub(crate) pictures: LockedPictures,
    pub(crate) vocabulary: NamedFiles,
    pub(crate) rules: Vec<Rule>,
    pub(crate) total_steps: u64,
}

impl Setup {
    /// From a recipe; `kept` is where an earlier part of the run left its vocabulary.
    /// `memory` is how many bytes there are for the run, where that is known.
    pub(crate) fn new(config: &TrainConfig, kept: &Path, memory: Option<u64>) -> Result<Self> {
        let dataset = Arc::new(Dataset::open(&config.data.sources)?);
        let class_count = config.model.classes.unwrap_or(dataset.class_count());
        if config.model.family.is_classifier() && class_count < dataset.class_count().max(1) {
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
        if let Some(available) = memory {
            let learner = Learner::new(&config.model, class_count, vocab, &Builder::zeros())?;
            let rules = rules(&learner.parameters, &config.freeze, &config.optim)?;
            let needed = Plan::new(config, &learner, &rules, None).memory() as u64;
            if needed > available {
                return Err(Error::Memory { needed, available });
            }
        }
        let learner =
            Learner::new(&config.model, class_count, vocab, &Builder::random(config.train.seed))?;
        if config.train.precision == Precision::Bf16 {
            learner.parameters.narrow(Narrow::Bf16);
        }
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
                Some(Reader::Clip(Box::new(TextEncoder::new(tokenizer, sizes.context_length))))
            }
            (Model::Lit(lit), _) => {
                let towers = config.model.towers.as_ref().expect("it was built from them");
                let (texts, its_files) = LockedTexts::open(&towers.text, lit)?;
                files = its_files;
                Some(Reader::Lit(Box::new(texts)))
            }
            _ => None,
        };
        let rules = rules(&learner.parameters, &config.freeze, &config.optim)?;
        let samples = Sampler::new(&dataset, config.train.seed, true)?.epoch_len();
        if samples < config.train.global_batch_size {
            let global = config.train.global_batch_size;
            let problem = format!("is {global}, the data have {samples} samples; lower it");
            return Err(Error::Unfit { key: "train.global_batch_size", problem });
        }
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
                view: match &learner.model {
                    Model::Lit(_) => View::None,
                    _ => View::Train {
                        size: learner.image_size(),
                        augment: config.data.augment.clone(),
                        mean: learner.processor.mean,
                        std: learner.processor.std,
                    },
                },
                cache: config.data.cache,
            },
        )?;
        let total_steps = total_steps(config, Some(size(&loader))).unwrap_or(1);
        Ok(Self {
            loader,
            classes,
            class_count,
            learner,
            texts,
            pictures: LockedPictures::new(config.data.on_broken),
            vocabulary: files,
            rules,
            total_steps,
        })
    }

    /// Texts in the joint space, `[texts, embed_dim]`, of any length.
    pub(crate) fn encode_texts(&self, texts: &[String]) -> Result<Tensor> {
        match (&self.learner.model, &self.texts) {
            (Model::Clip(clip), Some(Reader::Clip(reader))) => {
                Ok(clip.encode_text(&reader.encode(texts)?.ids, texts.len())?)
            }
            (Model::Lit(lit), Some(Reader::Lit(reader))) => {
                Ok(lit.project_texts(&reader.features(lit, texts)?)?)
            }
            (other, _) => {
                let problem = format!("{} reads no text", other.kind());
                Err(Error::Unfit { key: "model.family", problem })
            }
        }
    }

    pub(crate) fn plan(&self, config: &TrainConfig) -> Plan {
        Plan::new(config, &self.learner, &self.rules, Some(size(&self.loader)))
    }
}

fn size(loader: &Loader) -> DataSize {
    let samples = loader.dataset().len();
    DataSize { samples, steps_per_epoch: loader.batches_per_epoch() }
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
