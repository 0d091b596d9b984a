//! The training loop, the only one.

use crate::checkpoint::{Checkpoints, TrainerState, write_atomically, write_json};
use crate::config::TrainConfig;
use crate::evaluation::Evaluation;
use crate::export::export;
use crate::identity::{changed_data, check_same_run, differing_keys, environment, fingerprints};
use crate::optimiser::Optimiser;
use crate::progress::{Progress, Show};
use crate::record::Recorder;
use crate::schedule::Schedule;
use crate::setup::Setup;
use crate::step::{Feed, Taken, check, clamp_temperature, outcome};
use crate::{Error, Result};
use ocelli_data::dataset::DataState;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Where a run lives and who watches it.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// The run folder, such as `runs/mnist`; a run in it is resumed.
    pub folder: PathBuf,
    /// How progress is shown.
    pub show: Show,
    /// Bytes that the run may take; one that needs more is refused before its parameters are drawn.
    pub memory: Option<u64>,
    /// Set from outside to end the run after the step under way, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Steps done.
    pub steps: u64,
    /// Whether it was stopped before its end.
    pub is_interrupted: bool,
    /// The last loss; not a number if no step was left to do.
    pub loss: f32,
    /// The last measurements.
    pub metrics: Vec<(String, f64)>,
    /// The best value of the watched metric and its step.
    pub best: Option<(f64, u64)>,
    /// Seconds over all sittings.
    pub seconds: f64,
    /// The model folder, of a finished run.
    pub export: Option<PathBuf>,
    /// Of a run that was finished before: keys of the recipe that differ from the ones it was trained
    /// with. Nothing was trained with them.
    pub without_effect: Option<Vec<String>>,
}

/// Trains what `config` describes, from the latest checkpoint in the folder if there is one.
///
/// # Errors
/// If data, model or folder cannot be used, or a loss or gradient is not finite.
pub fn run(config: &TrainConfig, options: &RunOptions) -> Result<Summary> {
    Trainer::new(config, options)?.run()
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    options: &'a RunOptions,
    setup: Setup,
    optimiser: Optimiser,
    schedule: Schedule,
    evaluations: Vec<Evaluation>,
    checkpoints: Checkpoints,
    recorder: Recorder,
    progress: Progress,
    state: TrainerState,
    data: DataState,
    without_effect: Option<Vec<String>>,
}

impl<'a> Trainer<'a> {
    fn new(config: &'a TrainConfig, options: &'a RunOptions) -> Result<Self> {
        let folder = &options.folder;
        let checkpoints = Checkpoints::open(folder.join("checkpoints"))?;
        let saved = checkpoints.latest()?;
        let recipe = folder.join("config.resolved.toml");
        if saved.is_some() {
            check_same_run(config, &recipe, folder)?;
        }
        let kept = folder.join("tokenizer");
        let setup = Setup::new(config, &kept, options.memory)?;
        // The files of a finished run tell how it was trained, so they stay.
        let is_finished = saved.as_ref().is_some_and(|s| s.trainer.step >= setup.total_steps);
        let without_effect =
            if is_finished { Some(differing_keys(config, &recipe)?) } else { None };
        if !is_finished {
            write_atomically(&recipe, config.to_toml()?.as_bytes())?;
        }
        for (name, bytes) in &setup.vocabulary {
            std::fs::create_dir_all(&kept)
                .map_err(|source| Error::Io { path: kept.clone(), source })?;
            write_atomically(&kept.join(name), bytes)?;
        }
        let mut optimiser = Optimiser::new(&config.optim, setup.rules.clone());
        let (mut state, mut data) = (TrainerState::default(), setup.loader.start());
        if let Some(saved) = saved {
            saved.restore(&setup.learner.parameters, &mut optimiser)?;
            (state, data) = (saved.trainer, saved.data);
        }
        let evaluations = match &config.eval {
            Some(eval) => Evaluation::open_all(eval, &setup.learner, &setup.classes)?,
            None => Vec::new(),
        };
        let schedule = Schedule::new(&config.schedule, config.optim.lr, setup.total_steps);
        let recorder = Recorder::open(folder, state.step)?;
        let mut progress = Progress::open(options.show, folder, state.step, setup.total_steps)?;
        let plan = setup.plan(config).to_string();
        if !is_finished {
            write_atomically(&folder.join("params.txt"), plan.as_bytes())?;
        }
        let (env, data_now) = (folder.join("env.json"), fingerprints(config)?);
        progress.line(&plan);
        if state.step > 0 {
            progress.line(&format!("resuming after step {}", state.step));
            changed_data(&env, &data_now).iter().for_each(|warning| progress.line(warning));
        }
        if !is_finished {
            write_json(&env, &environment(config, &setup, &data_now))?;
        }
        Ok(Self {
            config,
            options,
            setup,
            optimiser,
            schedule,
            evaluations,
            checkpoints,
            recorder,
            progress,
            state,
            data,
            without_effect,
        })
    }

    fn run(mut self) -> Result<Summary> {
        let total_steps = self.setup.total_steps;
        let (mut loss, mut metrics, mut is_interrupted) = (f32::NAN, Vec::new(), false);
        let mut feed = Feed::open(&self.setup, &self.config.train, &self.data)?;
        let (started, before) = (Instant::now(), self.state.seconds);
        let (mut images, mut since) = (0, Instant::now());
        for step in self.state.step + 1..=total_steps {
            let lr = self.schedule.at(step - 1);
            let (train, progress) = (&self.config.train, &mut self.progress);
            let (outcome, taken) = outcome(&self.setup, train, &mut feed, step, progress)?;
            let Taken { samples, epoch, state_after } = taken;
            self.data = state_after;
            images += samples;
            check(&outcome, &self.setup.rules, step)?;
            loss = outcome.loss;
            let grad_norm = self.optimiser.step(outcome.gradients, lr)?;
            clamp_temperature(&self.setup);
            self.state.step = step;
            self.state.seconds = before + started.elapsed().as_secs_f64();

            let is_last = step == total_steps;
            let is_due = |every: u64| is_last || step.is_multiple_of(every);
            let images_per_second = images as f64 / since.elapsed().as_secs_f64().max(1e-9);
            self.progress.step(step, loss, images_per_second);
            if is_due(self.config.log.every_steps) {
                self.record(epoch, loss, lr, grad_norm, images_per_second)?;
                (images, since) = (0, Instant::now());
            }
            let mut is_best = false;
            if let Some(eval) = &self.config.eval
                && is_due(eval.every_steps)
            {
                metrics = self.measure()?;
                is_best = self.is_best(&metrics);
                since = Instant::now();
                images = 0;
            }
            is_interrupted = self.options.stop.load(Ordering::SeqCst) && !is_last;
            if is_best || is_interrupted || is_due(self.config.checkpoint.every_steps) {
                self.save(is_best)?;
            }
            if is_interrupted {
                self.progress.line(&format!("stopped after step {step}; run again to go on"));
                break;
            }
        }
        drop(feed);
        let export = if is_interrupted { None } else { Some(self.export()?) };
        self.progress.finish();
        let TrainerState { step: steps, seconds, best } = self.state;
        let without_effect = self.without_effect;
        Ok(Summary { steps, is_interrupted, loss, metrics, best, seconds, export, without_effect })
    }

    fn record(&mut self, epoch: u64, loss: f32, lr: f64, norm: f64, rate: f64) -> Result<()> {
        let step = self.state.step;
        let mut values = vec![
            ("epoch".to_owned(), epoch as f64),
            ("loss".to_owned(), f64::from(loss)),
            ("lr".to_owned(), lr),
            ("grad_norm".to_owned(), norm),
            ("images_per_second".to_owned(), rate),
            ("seconds".to_owned(), self.state.seconds),
        ];
        if let Some(scale) = self.setup.learner.parameters.get("logit_scale") {
            values.push(("logit_scale".to_owned(), f64::from(scale.tensor().item()?)));
        }
        self.recorder.record(step, &values)?;
        let of = self.setup.total_steps;
        self.progress.now_and_then(&format!(
            "step {step}/{of} epoch {epoch} loss {loss:.4} lr {lr:.2e} norm {norm:.2} {rate:.0} images/s"
        ));
        Ok(())
    }

    fn measure(&mut self) -> Result<Vec<(String, f64)>> {
        let mut metrics = Vec::new();
        for evaluation in &self.evaluations {
            metrics.extend(evaluation.run(&self.setup)?);
        }
        self.recorder.record(self.state.step, &metrics)?;
        self.recorder.plot()?;
        let text: Vec<String> = metrics.iter().map(|(n, v)| format!("{n} {v:.4}")).collect();
        self.progress.line(&format!("step {} {}", self.state.step, text.join("  ")));
        Ok(metrics)
    }

    /// Whether the watched metric is better than ever; remembers it.
    fn is_best(&mut self, metrics: &[(String, f64)]) -> bool {
        let Some((name, direction)) =
            self.config.checkpoint.keep_best.as_deref().and_then(|best| best.split_once(':'))
        else {
            return false;
        };
        let Some((_, value)) = metrics.iter().find(|(n, _)| n == name) else { return false };
        let is_better = |old: f64| if direction == "min" { *value < old } else { *value > old };
        let is_best = self.state.best.is_none_or(|(old, _)| is_better(old));
        if is_best {
            self.state.best = Some((*value, self.state.step));
        }
        is_best
    }

    fn save(&mut self, is_best: bool) -> Result<()> {
        let parameters = &self.setup.learner.parameters;
        self.checkpoints.save(parameters, &self.optimiser, &self.state, &self.data)?;
        if is_best {
            self.checkpoints.mark_best(self.state.step)?;
        }
        self.checkpoints.thin_out(self.config.checkpoint.keep_last)?;
        self.recorder.plot()
    }

    fn export(&mut self) -> Result<PathBuf> {
        let folder = self.options.folder.join("export");
        let weights = self.checkpoints.best_weights();
        export(&folder, &self.setup, weights.as_deref())?;
        self.progress.line(&format!("the model is in {}", folder.display()));
        Ok(folder)
    }
}
