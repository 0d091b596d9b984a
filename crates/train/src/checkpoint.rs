//! Checkpoints of a run: written whole or not at all, found again, thinned out.
//!
//! ```text
//! checkpoints/step-00001000/   model.safetensors  optimizer.safetensors  trainer.json  rng.json  data_state.json
//! checkpoints/latest -> step-00001000      best -> step-…
//! ```
//!
//! A checkpoint is written under another name, flushed to the disk and renamed; the links move last.
//! Whenever the program is killed, `latest` names a whole checkpoint.

use crate::optimiser::Optimiser;
use crate::{Error, Result};
use ocelli_data::dataset::DataState;
use ocelli_nn::Parameters;
use ocelli_nn::checkpoint::{Checkpoint, Dtype, TensorView, save_safetensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const LATEST: &str = "latest";
const BEST: &str = "best";
const DRAFT: &str = ".draft";

/// `trainer.json`: where the run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainerState {
    /// Steps done.
    pub(crate) step: u64,
    /// Seconds spent, over all sittings.
    pub(crate) seconds: f64,
    /// The best value of the watched metric and its step.
    pub(crate) best: Option<(f64, u64)>,
}

/// `rng.json`: random numbers outside the data follow from the seed and the step alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RngState {
    seed: u64,
    step: u64,
}

/// The checkpoints of a run.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
}

/// A checkpoint on the disk.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: PathBuf,
    pub(crate) trainer: TrainerState,
    pub(crate) data: DataState,
}

impl Checkpoints {
    /// In `folder`, which is made; drafts of a killed run are removed.
    pub(crate) fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|e| io(&folder, e))?;
        remove(&folder.join(DRAFT))?;
        Ok(Self { folder })
    }

    /// Writes the state after `trainer.step` steps and moves `latest` to it.
    pub(crate) fn save(
        &self,
        parameters: &Parameters,
        optimiser: &Optimiser,
        trainer: &TrainerState,
        data: &DataState,
    ) -> Result<()> {
        let draft = self.folder.join(DRAFT);
        remove(&draft)?;
        fs::create_dir(&draft).map_err(|e| io(&draft, e))?;
        save_parameters(&draft.join("model.safetensors"), parameters)?;
        let path = draft.join("optimizer.safetensors");
        optimiser.save(|tensors| save_safetensors(&path, tensors, &BTreeMap::new()))?;
        write_json(&draft.join("trainer.json"), trainer)?;
        write_json(&draft.join("rng.json"), &RngState { seed: data.seed, step: trainer.step })?;
        write_json(&draft.join("data_state.json"), data)?;
        sync(&draft)?;
        let name = name_of(trainer.step);
        let folder = self.folder.join(&name);
        remove(&folder)?;
        fs::rename(&draft, &folder).map_err(|e| io(&folder, e))?;
        sync(&self.folder)?;
        self.point(LATEST, &name)
    }

    /// Moves `best` to the checkpoint of `step`.
    pub(crate) fn mark_best(&self, step: u64) -> Result<()> {
        self.point(BEST, &name_of(step))
    }

    fn point(&self, link: &str, target: &str) -> Result<()> {
        let draft = self.folder.join(format!(".{link}"));
        remove(&draft)?;
        link_to(target, &draft).map_err(|e| io(&draft, e))?;
        let link = self.folder.join(link);
        fs::rename(&draft, &link).map_err(|e| io(&link, e))?;
        sync(&self.folder)
    }

    /// Removes all but the last `keep` checkpoints; the latest and the best stay.
    pub(crate) fn thin_out(&self, keep: usize) -> Result<()> {
        let listed = fs::read_dir(&self.folder).map_err(|e| io(&self.folder, e))?;
        let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
        names.sort_unstable();
        let target = |link| fs::read_link(self.folder.join(link)).ok();
        let linked = [target(LATEST), target(BEST)];
        names.truncate(names.len().saturating_sub(keep));
        for name in names {
            if !linked.iter().flatten().any(|target| target == Path::new(&name)) {
                remove(&self.folder.join(name))?;
            }
        }
        Ok(())
    }

    /// The checkpoint that `latest` names, if there is one.
    pub(crate) fn latest(&self) -> Result<Option<Saved>> {
        self.read(LATEST)
    }

    /// The weights of the best checkpoint, or of the latest one.
    pub(crate) fn best_weights(&self) -> Option<PathBuf> {
        [BEST, LATEST]
            .iter()
            .map(|link| self.folder.join(link).join("model.safetensors"))
            .find(|path| path.is_file())
    }

    fn read(&self, link: &str) -> Result<Option<Saved>> {
        let folder = self.folder.join(link);
        if !folder.exists() {
            return Ok(None);
        }
        let trainer = read_json(&folder.join("trainer.json"))?;
        let data = read_json(&folder.join("data_state.json"))?;
        Ok(Some(Saved { folder, trainer, data }))
    }
}

impl Saved {
    /// Gives parameters and optimiser the state that was saved.
    pub(crate) fn restore(&self, parameters: &Parameters, optimiser: &mut Optimiser) -> Result<()> {
        read_parameters(&self.folder.join("model.safetensors"), parameters)?;
        let file = Checkpoint::open(&self.folder.join("optimizer.safetensors"))?;
        optimiser.restore(&file, self.trainer.step)
    }
}

/// Gives all parameters the values of a file of [`save_parameters`].
pub(crate) fn read_parameters(path: &Path, parameters: &Parameters) -> Result<()> {
    let file = Checkpoint::open(path)?;
    for parameter in parameters.iter() {
        let values = file.read_f32(parameter.name())?;
        if values.len() != parameter.elements() {
            let (name, found) = (parameter.name(), values.len());
            let problem = format!("{name} has {found} values, expected {}", parameter.elements());
            return Err(Error::State { path: path.to_path_buf(), problem });
        }
        parameter.update(|own| own.copy_from_slice(&values));
    }
    Ok(())
}

/// Writes all parameters under our own names, filters as such.
pub(crate) fn save_parameters(path: &Path, parameters: &Parameters) -> Result<()> {
    let tensors: Vec<_> =
        parameters.iter().map(|p| (p.name(), p.stored_shape(), p.tensor())).collect();
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .map(|(name, shape, tensor)| {
            let bytes = bytemuck::cast_slice(tensor.values());
            TensorView { name, dtype: Dtype::F32, shape, bytes }
        })
        .collect();
    Ok(save_safetensors(path, &views, &BTreeMap::new())?)
}

fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_path_buf(), source }
}

/// Removes a file, link or folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.map_err(|e| io(path, e))
}

/// Makes sure that the entries of a folder are on the disk.
fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io(folder, e))
}

#[cfg(unix)]
fn link_to(target: &str, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn link_to(target: &str, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_dir(target, link)
}

/// Writes `bytes` to `path` so that a reader or a crash sees the old file or the new one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".draft");
    let draft = path.with_file_name(name);
    let write = || {
        fs::write(&draft, bytes)?;
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|e| io(path, e))
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| state(path, &e))?;
    text.push(b'\n');
    write_atomically(path, &text)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| state(path, &e))
}

fn state(path: &Path, error: &serde_json::Error) -> Error {
    Error::State { path: path.to_path_buf(), problem: error.to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use crate::config::OptimConfig;
    use ocelli_nn::{Builder, Init};

    #[test]
    fn drafts_are_not_checkpoints_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path().join("checkpoints")).unwrap();
        let builder = Builder::random(1);
        let parameter = builder.parameter("w", &[3], Init::Constant(0.0));
        let parameters = builder.finish().unwrap();
        let mut optimiser = Optimiser::new(&OptimConfig::default(), Vec::new());
        let data =
            DataState { seed: 1, samples: 2, epoch_samples: 2, epoch: 0, index: 1, skipped: 0 };
        assert!(checkpoints.latest().unwrap().is_none());
        for step in [10, 20, 30, 40] {
            parameter.update(|v| v.fill(step as f32));
            let trainer = TrainerState { step, ..TrainerState::default() };
            checkpoints.save(&parameters, &optimiser, &trainer, &data).unwrap();
            if step == 10 {
                checkpoints.mark_best(step).unwrap();
            }
            checkpoints.thin_out(2).unwrap();
        }
        // A run that was killed while it wrote.
        fs::create_dir(checkpoints.folder.join(DRAFT)).unwrap();
        let checkpoints = Checkpoints::open(checkpoints.folder.clone()).unwrap();
        let mut names: Vec<String> = fs::read_dir(&checkpoints.folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["best", "latest", "step-00000010", "step-00000030", "step-00000040"]);
        let saved = checkpoints.latest().unwrap().unwrap();
        assert_eq!((saved.trainer.step, &saved.data), (40, &data));
        parameter.update(|v| v.fill(0.0));
        saved.restore(&parameters, &mut optimiser).unwrap();
        assert_eq!((parameter.tensor().values(), optimiser.steps()), (&[40.0; 3][..], 40));
        assert!(checkpoints.best_weights().unwrap().starts_with(checkpoints.folder.join("best")));
    }
}
