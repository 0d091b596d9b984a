//! `ocelli train`: a model from a recipe.

use crate::failure::Failure;
use crate::global::Global;
use crate::interrupt;
use crate::memory;
use crate::output::Output;
use ocelli_data::dataset::DatasetError;
use ocelli_train::{RunOptions, Show, Summary, TrainConfig, plan, run as train};
use std::path::{Component, Path, PathBuf};

/// Train a model by a recipe
///
/// A run folder holds checkpoints, logs, plots and the finished model. Ctrl-C saves a checkpoint
/// and stops; the same command goes on from there, with the same losses as if nothing had happened.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli train -c recipes/vit/mnist.toml --dry-run
  ocelli train -c recipes/vit/mnist.toml
  ocelli train -c recipes/vit/mnist.toml optim.lr=1e-3 train.epochs=5 --name mnist-fast
  ocelli train -c recipes/vit/mnist.toml --resume

Keys may also be set as OCELLI__SECTION__KEY in the environment.")]
pub(crate) struct Args {
    /// The recipe, a TOML file
    #[arg(short = 'c', long = "config", value_name = "RECIPE")]
    config: PathBuf,
    /// Keys of the recipe with other values
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// The run's name; default: that of the recipe
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The folder of all runs
    #[arg(long, value_name = "DIR", default_value = "runs", alias = "logs")]
    runs: PathBuf,
    /// Only print parts, parameters, memory and steps
    #[arg(long, alias = "dry_run")]
    dry_run: bool,
    /// Fail unless there is a run to go on with
    #[arg(long)]
    resume: bool,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let config = TrainConfig::load(&args.config, &args.overrides)?;
    let mut out = Output::new();
    let failed = |error| failure(error, &args.config);
    if args.dry_run {
        out.text(&plan(&config).map_err(failed)?.to_string())?;
        return out.flush();
    }
    if let Some(name) = &args.name
        && !is_folder_name(name)
    {
        return Err(Failure::usage(format!(
            "--name {name}: expected the name of one folder; --runs says where it is"
        )));
    }
    let recipe = args.config.file_stem().unwrap_or_default().to_string_lossy();
    let folder = args.runs.join(args.name.as_deref().unwrap_or(&recipe));
    if args.resume && !folder.join("checkpoints").is_dir() {
        return Err(Failure::model(format!(
            "{}: no checkpoint to resume from; leave out --resume or check --name",
            folder.display()
        )));
    }
    interrupt::watch();
    let show = match (global.has_bar(false), global.has_log()) {
        (true, _) => Show::Bar,
        (false, true) => Show::Lines,
        (false, false) => Show::Nothing,
    };
    let options = RunOptions {
        folder: folder.clone(),
        show,
        memory: memory::available(),
        stop: interrupt::flag(),
    };
    let summary = train(&config, &options).map_err(failed)?;
    out.text(&told(&summary, &folder))?;
    out.flush()?;
    if summary.is_interrupted { Err(Failure::interrupted()) } else { Ok(()) }
}

/// An error, with what the recipe says about its data if that is not there, or can say of samples that
/// are broken.
fn failure(error: ocelli_train::Error, recipe: &Path) -> Failure {
    if let ocelli_train::Error::Dataset(
        DatasetError::Picture { .. } | DatasetError::NoTarget { .. },
    ) = &error
    {
        let skip = "to leave broken samples out, set data.on_broken = { skip = { limit = 100 } }";
        return Failure::from(error).with(skip);
    }
    let is_missing = matches!(error, ocelli_train::Error::Dataset(DatasetError::NotThere { .. }));
    let text = std::fs::read_to_string(recipe).unwrap_or_default();
    let data = text.lines().find_map(|line| line.strip_prefix("# Data: "));
    match (Failure::from(error), data) {
        (failure, Some(data)) if is_missing => failure.with(&format!("the recipe says: {data}")),
        (failure, _) => failure,
    }
}

/// Whether this names a folder within another, and neither itself nor one above.
fn is_folder_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let first = parts.next();
    matches!(first, Some(Component::Normal(part)) if part == name) && parts.next().is_none()
}

fn told(summary: &Summary, folder: &Path) -> String {
    let mut text = format!("{} steps in {:.0} s", summary.steps, summary.seconds);
    if summary.loss.is_finite() {
        text += &format!(", loss {:.4}", summary.loss);
    }
    for (name, value) in &summary.metrics {
        text += &format!(", {name} {value:.4}");
    }
    if let Some((value, step)) = summary.best {
        text += &format!(", best {value:.4} at step {step}");
    }
    if let Some(keys) = &summary.without_effect {
        text += "; the run was finished before";
        if !keys.is_empty() {
            text += &format!(
                ", so {} had no effect: give it another --name to train anew",
                keys.join(", ")
            );
        }
    }
    let place = summary.export.as_deref().unwrap_or(folder);
    text + &format!("\n{}\n", place.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stay_in_their_folder() {
        assert!(is_folder_name("mnist-fast") && is_folder_name("..a"));
        for name in ["../evil", "..", ".", "", "/evil", "a/b", "a/"] {
            assert!(!is_folder_name(name), "{name}");
        }
    }
}
