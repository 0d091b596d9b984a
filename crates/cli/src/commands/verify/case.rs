//! A case folder.

use super::Computed;
use crate::failure::Failure;
use ocelli_nn::checkpoint::{Checkpoint, Dtype, TensorView, save_safetensors};
use ocelli_tensor::Tensor;
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Inputs, expected results and settings of a case.
pub(super) struct Case {
    /// Where the model's files are.
    pub(super) checkpoint: PathBuf,
    pub(super) golden: Checkpoint,
    /// The golden file of a neighbouring checkpoint, for inputs that this one leaves out.
    neighbour: Option<Checkpoint>,
    pub(super) settings: Value,
}

impl Case {
    pub(super) fn open(dir: &Path) -> Result<Self, Failure> {
        let golden = Checkpoint::open(&dir.join("golden.safetensors"))?;
        let file = dir.join("golden.json");
        let settings = if file.is_file() {
            let text = std::fs::read_to_string(&file)
                .map_err(|e| Failure::input(format!("cannot read {}: {e}", file.display())))?;
            serde_json::from_str(&text)
                .map_err(|e| Failure::input(format!("{}: {e}", file.display())))?
        } else {
            Value::Null
        };
        let mut case = Self { checkpoint: dir.to_owned(), golden, neighbour: None, settings };
        if let Some(name) = case.settings.get("checkpoint").and_then(Value::as_str) {
            if name.contains(['/', '\\']) || name.starts_with('.') {
                return Err(Failure::input(format!(
                    "golden.json: checkpoint `{name}` is no neighbouring folder"
                )));
            }
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            case.checkpoint = dir.parent().unwrap_or(Path::new(".")).join(name);
            case.neighbour = Checkpoint::open(&case.checkpoint.join("golden.safetensors")).ok();
        }
        Ok(case)
    }

    /// Names of the expected results, sorted.
    pub(super) fn expected(&self) -> Vec<String> {
        let kinds = ["out/", "embed/", "grad/", "adamw/", "gen/"];
        let is_result = |name: &&str| kinds.iter().any(|k| name.starts_with(k));
        self.golden.names().filter(is_result).map(str::to_owned).collect()
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.golden.info(name).is_some()
    }

    pub(super) fn shape(&self, name: &str) -> &[usize] {
        self.golden.info(name).map_or(&[], |(_, shape)| shape)
    }

    /// Names of inputs that begin with `prefix`.
    pub(super) fn inputs(&self, prefix: &str) -> Vec<String> {
        self.golden.names().filter(|n| n.starts_with(prefix)).map(str::to_owned).collect()
    }

    fn holder(&self, name: &str) -> Option<&Checkpoint> {
        [Some(&self.golden), self.neighbour.as_ref()]
            .into_iter()
            .flatten()
            .find(|c| c.info(name).is_some())
    }

    /// An input as a tensor, if the case has it.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>, Failure> {
        let Some(file) = self.holder(name) else { return Ok(None) };
        let shape = file.info(name).map(|(_, s)| s.to_vec()).unwrap_or_default();
        Ok(Some(Tensor::from_slice(&file.read_f32(name)?, &shape)?))
    }

    /// An input of whole numbers, if the case has it.
    pub(super) fn ids(&self, name: &str) -> Result<Option<Arc<[u32]>>, Failure> {
        let Some(file) = self.holder(name) else { return Ok(None) };
        let ids: Option<Vec<u32>> =
            file.read_i64(name)?.into_iter().map(|v| u32::try_from(v).ok()).collect();
        let wrong = || Failure::input(format!("{name} holds negative numbers"));
        Ok(Some(ids.ok_or_else(wrong)?.into()))
    }

    /// How many samples an input of ids holds.
    pub(super) fn rows(&self, name: &str) -> usize {
        let shape = self.holder(name).and_then(|c| c.info(name)).map(|(_, s)| s);
        shape.and_then(|s| s.first()).copied().unwrap_or(0)
    }

    /// A list of texts in the settings.
    pub(super) fn texts(&self, field: &str) -> Vec<String> {
        let list = self.settings.get(field).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Heads of a tower whose file does not count them: a number in the settings, or one in the
    /// sentence that explains them, or the heads of 8 that the smallest towers have.
    pub(super) fn heads(&self, tower: &str) -> Option<usize> {
        let number =
            |field: &str| self.settings.get(field).and_then(Value::as_u64).map(|n| n as usize);
        if let Some(n) = number(&format!("{tower}_heads")) {
            return Some(n);
        }
        if tower == "vision"
            && let Some(n) = number("attnpool_heads")
        {
            return Some(n);
        }
        let rule = self.settings.get("heads_rule").and_then(Value::as_str)?;
        let pattern = Regex::new(&format!(r"{tower} heads (\d+)")).ok()?;
        if let Some(found) = pattern.captures(rule) {
            return found[1].parse().ok();
        }
        let file = Checkpoint::open(&self.checkpoint).ok()?;
        let width = *file.info("ln_final.weight")?.1.first()?;
        (tower == "text" && width < 64).then_some((width / 8).max(1))
    }

    /// Writes results in the shapes that the case names.
    pub(super) fn write(&self, path: &Path, computed: &Computed) -> Result<(), Failure> {
        let rows: Vec<(&str, Vec<usize>, Vec<u8>)> = computed
            .iter()
            .map(|(name, t)| {
                let named = self.shape(name);
                let fits = self.wants(name) && named.iter().product::<usize>() == t.elements();
                let shape = if fits { named.to_vec() } else { t.shape().to_vec() };
                (name.as_str(), shape, t.values().iter().flat_map(|v| v.to_le_bytes()).collect())
            })
            .collect();
        let views: Vec<TensorView> = rows
            .iter()
            .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
            .collect();
        Ok(save_safetensors(path, &views, &BTreeMap::new())?)
    }
}
