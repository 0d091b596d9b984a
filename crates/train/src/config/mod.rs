//! A recipe: one struct per section of the TOML file, every unknown key an error.
//!
//! Units are in the names. Reading, overriding and checking are in the neighbouring files.

mod load;

use ocelli_data::dataset::{AugmentConfig, CacheConfig, OnBroken, SourceConfig};
use ocelli_models::systems::lit::Projection;
use ocelli_models::vision::local_vit::Neighbourhood;
use ocelli_models::vision::resnet_v2::ResNetV2Config;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything that a run is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// `[model]`.
    pub model: ModelConfig,
    /// `[data]`.
    pub data: DataConfig,
    /// `[train]`.
    pub train: StageConfig,
    /// `[optim]`.
    pub optim: OptimConfig,
    /// `[schedule]`.
    pub schedule: ScheduleConfig,
    /// `[freeze]`.
    pub freeze: FreezeConfig,
    /// `[checkpoint]`.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// `[log]`.
    #[serde(default)]
    pub log: LogConfig,
    /// `[eval]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalConfig>,
}

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The kind of model.
    pub family: Family,
    /// A published size, such as `B/16` or `ViT-B/32`; without it the sizes below decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// A model directory to start from; new parts are drawn at random. A variant beside it says what
    /// sizes it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Side of the square input, in pixels; that of the variant when absent. With `from`, the position
    /// table is resampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Subtracted from the channels of a picture, in [0, 1]; that of the checkpoint or the family when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f32; 3]>,
    /// Divides them after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<[f32; 3]>,
    /// Classes of a classifier; those of the training data when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Width of the joint space of CLIP and LiT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embed_dim: Option<usize>,
    /// The locked towers of LiT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub towers: Option<TowersConfig>,
    /// Sizes of the vision tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionSizes>,
    /// Sizes of a ResNet tower of CLIP, in place of `vision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resnet: Option<ResNetSizes>,
    /// Sizes of the ResNet of a hybrid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone: Option<ResNetV2Config>,
    /// Which tokens a token of a local ViT attends to: `"axes"` or `{ window = 7 }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbourhood: Option<Neighbourhood>,
    /// Sizes of the text tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSizes>,
    /// The vocabulary of CLIP; the published one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerConfig>,
}

/// A kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// A Vision Transformer with a classifier.
    Vit,
    /// A Vision Transformer with a classifier on the feature map of a ResNet.
    Hybrid,
    /// A Vision Transformer with a classifier whose tokens look at their neighbourhood only.
    LocalVit,
    /// Pictures and texts in one space.
    Clip,
    /// The same on towers that stay as they are.
    Lit,
}

/// The locked towers of LiT, and what is learned on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowersConfig {
    /// The folder of a DINOv2, or of another ViT with a class token.
    pub vision: PathBuf,
    /// Blocks of it that pictures go through; its features are the tokens behind the last of them.
    pub hidden_state: usize,
    /// The folder of a BERT that makes sentences into vectors.
    pub text: PathBuf,
    /// `"linear"`, or `{ mlp = 1024 }` with a hidden width.
    pub projection: Projection,
}

impl Family {
    /// Whether pictures and their classes are what it learns from.
    pub fn is_classifier(self) -> bool {
        matches!(self, Self::Vit | Self::Hybrid | Self::LocalVit)
    }
}

/// Sizes of a Vision Transformer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionSizes {
    /// Side of a patch, in pixels; of a hybrid in positions of the feature map, of which it is 1.
    pub patch_size: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron; four times the width when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_dim: Option<usize>,
}

/// Sizes of a ResNet tower of CLIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetSizes {
    /// Blocks of each stage.
    pub layers: [usize; 4],
    /// Channels behind the stem.
    pub width: usize,
}

/// Sizes of a text tower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSizes {
    /// Tokens of a text, start and end included.
    pub context_length: usize,
    /// Width of a token.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each attention.
    pub heads: usize,
    /// Hidden width of each perceptron; four times the width when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_dim: Option<usize>,
}

/// Where a vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// The 49,408 ids of the published models.
    Clip,
    /// A folder with `vocab.json` and `merges.txt`, or `tokenizer.json`.
    Path(PathBuf),
    /// Learned from the captions of the training data, at most this many ids.
    TrainVocabSize(usize),
}

/// What is learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folders, tables, JSON lines, shards, with their weights.
    pub sources: Vec<SourceConfig>,
    /// Random changes to pictures.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// Decoded pictures kept in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheConfig>,
    /// Background threads that make batches. One keeps up with two that compute.
    #[serde(default = "one")]
    pub threads: usize,
    /// What to do about a sample that cannot be read.
    #[serde(default = "stop")]
    pub on_broken: OnBroken,
}

fn one() -> usize {
    1
}

fn stop() -> OnBroken {
    OnBroken::Error
}

/// What the run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// The objective.
    pub stage: Stage,
    /// Passes over the data; or else `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Optimiser steps; or else `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Samples of an optimiser step.
    pub global_batch_size: usize,
    /// Samples in memory at once; all of the step when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_size: Option<usize>,
    /// Whether blocks of transformers are computed a second time for their gradients, so that the
    /// tape keeps their inputs alone (Chen et al. 2016, arXiv:1604.06174).
    #[serde(default)]
    pub grad_checkpointing: bool,
    /// Of new parameters, the order of samples and all random changes.
    #[serde(default = "seed")]
    pub seed: u64,
    /// What linear layers multiply in.
    #[serde(default)]
    pub precision: Precision,
    /// Weight that is spread over all classes, in [0, 1).
    #[serde(default)]
    pub label_smoothing: f32,
    /// Both parameters of the Beta distribution that mixes pairs among the pictures in memory at once
    /// (Zhang et al. 2018, arXiv:1710.09412); 0 mixes nothing.
    #[serde(default)]
    pub mixup: f64,
    /// Share of values left out behind the embedding and behind the layers of each residual branch, in
    /// [0, 1); of classifiers alone.
    #[serde(default)]
    pub dropout: f32,
}

impl StageConfig {
    /// Samples in memory at once.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch_size.unwrap_or(self.global_batch_size)
    }

    /// Whether a step needs its pictures a second time: the loss of a contrastive step compares all of
    /// them, and not all are in memory.
    pub fn reads_twice(&self) -> bool {
        self.stage == Stage::Contrastive && self.micro_batch() < self.global_batch_size
    }
}

fn seed() -> u64 {
    42
}

/// An objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Pictures and their texts find each other in the batch.
    Contrastive,
    /// Pictures and their classes.
    Supervised,
}

/// A type of number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    F32,
    /// The upper half of an f32 for both operands, forward and backward; sums, weights, what is kept
    /// for gradients and the optimiser stay f32.
    Bf16,
}

/// How parameters change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimConfig {
    /// The optimiser.
    pub name: OptimName,
    /// Highest learning rate of the run.
    pub lr: f64,
    /// Decay rates of the moments of AdamW.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment of AdamW.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decoupled decay of weights; gains, biases and all else of fewer than two axes are left out.
    #[serde(default)]
    pub weight_decay: f64,
    /// Momentum of SGD.
    #[serde(default)]
    pub momentum: f64,
    /// Gradients of a larger norm over all parameters are scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Factors on the learning rate of parts.
    #[serde(default)]
    pub lr_scale: LrScale,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            name: OptimName::Adamw,
            lr: 1e-3,
            betas: betas(),
            eps: eps(),
            weight_decay: 0.0,
            momentum: 0.0,
            max_grad_norm: None,
            lr_scale: LrScale::default(),
        }
    }
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn eps() -> f64 {
    1e-8
}

/// Factors on the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LrScale {
    /// Of the vision tower.
    pub vision: f64,
    /// Of the text tower.
    pub text: f64,
    /// Of what is on top: the classifier, the temperature.
    pub head: f64,
}

impl Default for LrScale {
    fn default() -> Self {
        Self { vision: 1.0, text: 1.0, head: 1.0 }
    }
}

/// An optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The learning rate over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The curve.
    pub name: ScheduleName,
    /// Steps of linear warm-up; or else `warmup_ratio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Share of the steps that warm up.
    #[serde(default)]
    pub warmup_ratio: f64,
    /// Learning rate at the end.
    #[serde(default)]
    pub min_lr: f64,
}

/// A curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Half a wave down to `min_lr`.
    #[default]
    Cosine,
    /// A line down to `min_lr`.
    Linear,
    /// No change.
    Constant,
}

/// Which parts learn; every part of the model is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreezeConfig {
    /// Of the vision tower.
    pub vision: Frozen,
    /// Of the text tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Frozen>,
}

/// What of a part stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Everything but the last blocks and what follows them.
    ExceptLast(usize),
}

/// When the state of the run is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; the last step makes one in any case.
    pub every_steps: u64,
    /// Checkpoints that stay, the best one not counted.
    pub keep_last: usize,
    /// A metric and `max` or `min`, such as `val_top1:max`; its best checkpoint stays and is exported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_best: Option<String>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 500, keep_last: 3, keep_best: None }
    }
}

/// What is written about the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Steps between records.
    pub every_steps: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { every_steps: 10 }
    }
}

/// What is measured during the run, and once at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps between measurements.
    pub every_steps: u64,
    /// Pictures at once.
    #[serde(default = "eval_batch_size")]
    pub batch_size: usize,
    /// What is measured on.
    pub sets: Vec<EvalSet>,
}

fn eval_batch_size() -> usize {
    100
}

/// Data to measure on. A classifier is measured by accuracy, CLIP and LiT by zero-shot accuracy over `labels`
/// or, without them, by retrieval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalSet {
    /// In front of the names of its metrics: `val` gives `val_top1`.
    pub name: String,
    /// Folders, tables, JSON lines, shards.
    pub sources: Vec<SourceConfig>,
    /// A file with one label a line, or `imagenet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Texts with `{}` for the label; `imagenet80` and `imagenet7` stand for the published ones.
    #[serde(default = "bare_label")]
    pub templates: Vec<String>,
}

fn bare_label() -> Vec<String> {
    vec!["{}".to_owned()]
}
