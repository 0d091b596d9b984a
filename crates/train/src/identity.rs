//! What a run is: whether a folder holds the same one, and what else its result may depend on.

use crate::config::TrainConfig;
use crate::setup::Setup;
use crate::{Error, Result};
use ocelli_data::dataset::Fingerprint;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Refuses to go on with a run of another model, other data or another objective.
pub(crate) fn check_same_run(config: &TrainConfig, recipe: &Path, folder: &Path) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(recipe) else { return Ok(()) };
    let old = TrainConfig::parse(&text, &recipe.display().to_string(), &[])?;
    let differs = [
        ("model", old.model != config.model),
        ("data.sources", old.data.sources != config.data.sources),
        ("freeze", old.freeze != config.freeze),
        ("train.stage", old.train.stage != config.train.stage),
        ("train.seed", old.train.seed != config.train.seed),
        ("optim.name", old.optim.name != config.optim.name),
    ];
    match differs.iter().find(|(_, differs)| *differs) {
        Some((section, _)) => Err(Error::OtherRun { path: folder.to_path_buf(), section }),
        None => Ok(()),
    }
}

/// Keys whose values in `config` are not those of the recipe that a run was trained by, sorted.
pub(crate) fn differing_keys(config: &TrainConfig, recipe: &Path) -> Result<Vec<String>> {
    let Ok(text) = std::fs::read_to_string(recipe) else { return Ok(Vec::new()) };
    let old = TrainConfig::parse(&text, &recipe.display().to_string(), &[])?.to_toml()?;
    let flat = |text: &str| {
        let mut keys = BTreeMap::new();
        if let Ok(table) = text.parse::<toml::Table>() {
            flatten("", &toml::Value::Table(table), &mut keys);
        }
        keys
    };
    let (old, new) = (flat(&old), flat(&config.to_toml()?));
    let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    Ok(all.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect())
}

fn flatten(path: &str, value: &toml::Value, keys: &mut BTreeMap<String, toml::Value>) {
    let toml::Value::Table(table) = value else {
        keys.insert(path.to_owned(), value.clone());
        return;
    };
    for (name, value) in table {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        flatten(&path, value, keys);
    }
}

/// The fingerprints of all training data.
pub(crate) fn fingerprints(config: &TrainConfig) -> Result<Vec<Fingerprint>> {
    config.data.sources.iter().map(|source| Ok(source.fingerprint()?)).collect()
}

/// A warning for each source that is not as `env.json` says it was when the run was last begun.
pub(crate) fn changed_data(env: &Path, now: &[Fingerprint]) -> Vec<String> {
    let sources = || {
        let env: Value = serde_json::from_slice(&std::fs::read(env).ok()?).ok()?;
        serde_json::from_value::<Vec<Fingerprint>>(env.get("sources")?.clone()).ok()
    };
    let before = sources().unwrap_or_default();
    let changed = before.iter().zip(now).filter(|(before, now)| before != now);
    let warning = |(before, now): (&Fingerprint, &Fingerprint)| {
        format!(
            "warning: {} is not what the run began with ({} files of {} bytes then, {} of {} now, or \
             other names or contents); its losses will not be those of one run",
            now.path, before.files, before.bytes, now.files, now.bytes
        )
    };
    changed.map(warning).collect()
}

/// `env.json`: what else a result may depend on.
pub(crate) fn environment(config: &TrainConfig, setup: &Setup, data: &[Fingerprint]) -> Value {
    let dataset = setup.loader.dataset();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "instructions": format!("{:?}", ocelli_kernels::Isa::best()),
        "threads": ocelli_kernels::pool::threads(),
        "seed": config.train.seed,
        "samples": dataset.len(),
        "classes": setup.class_count,
        "sources": data,
    })
}
