//! A case folder.

use super::Computed;
use crate::failure::Failure;
use ocelli_nn::checkpoint::{Checkpoint, Dtype, TensorView, save_safetensors};
use ocelli_tensor::Tensor;
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
    /// The configuration of the neighbouring checkpoint that has the same weights in another layout.
    same_weights: Value,
}

impl Case {
    pub(super) fn open(dir: &Path) -> Result<Self, Failure> {
        let golden = Checkpoint::open(&dir.join("golden.safetensors"))?;
        let file = dir.join("golden.json");
        let settings = if file.is_file() { json(&file)? } else { Value::Null };
        let (checkpoint, neighbour, same_weights) = (dir.to_owned(), None, Value::Null);
        let mut case = Self { checkpoint, golden, neighbour, settings, same_weights };
        if let Some(folder) = neighbour_of(dir, &case.settings, "checkpoint")? {
            case.neighbour = Checkpoint::open(&folder.join("golden.safetensors")).ok();
            case.checkpoint = folder;
        }
        if let Some(folder) = neighbour_of(dir, &case.settings, "same_weights_as")? {
            let file = folder.join("config.json");
            case.same_weights = if file.is_file() { json(&file)? } else { Value::Null };
        }
        Ok(case)
    }

    /// Names of the expected results, sorted.
    pub(super) fn expected(&self) -> Vec<String> {
        let kinds = [
            "out/",
            "embed/",
            "tap/",
            "grad/",
            "grad_lm/",
            "adamw/",
            "gen/",
            "turn2/",
            "momentum/",
            "queue/",
        ];
        let given = [
            "gen/input_ids",
            "gen/attention_mask",
            "gen/prompt_ids",
            "gen/image_index",
            "gen/image_indices",
        ];
        let is_result = |name: &&str| {
            *name == "cache/step_logits"
                || kinds.iter().any(|k| name.starts_with(k)) && !given.contains(name)
        };
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

    /// A field of a file of the checkpoint, if both are there.
    pub(super) fn value(&self, file: &str, field: &str) -> Option<Value> {
        let value = json(&self.checkpoint.join(file)).ok()?;
        value.get(field).filter(|v| !v.is_null()).cloned()
    }

    /// An id that `golden.json` or else the configuration of the checkpoint names.
    pub(super) fn id(&self, field: &str) -> Option<u32> {
        let id = |value: &Value| u32::try_from(value[field].as_u64()?).ok();
        id(&self.settings).or_else(|| id(&json(&self.checkpoint.join("config.json")).ok()?))
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

    /// Heads of a tower whose checkpoint does not count them: the number in `golden.json`, or else in
    /// the configuration of the case with the same weights. Nothing otherwise, so that the rule of
    /// OpenAI's code holds, heads of 64; but a text tower narrower than that is a miniature with heads
    /// of 8, which no file of `clip/openai_resnet` says.
    pub(super) fn heads(&self, tower: &str) -> Option<usize> {
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        let said = number(&self.settings[format!("{tower}_heads")])
            .or_else(|| number(&self.settings["attnpool_heads"]).filter(|_| tower == "vision"));
        let section = &self.same_weights[format!("{tower}_config")];
        said.or_else(|| number(&section["num_attention_heads"])).or_else(|| {
            let file = Checkpoint::open(&self.checkpoint).ok()?;
            let width = *file.info("ln_final.weight")?.1.first()?;
            (tower == "text" && width < 64).then_some((width / 8).max(1))
        })
    }

    /// Writes results in the shapes that the case names.
    pub(super) fn write(&self, path: &Path, computed: &Computed) -> Result<(), Failure> {
        let rows: Vec<(&str, Vec<usize>, Dtype, Vec<u8>)> = computed
            .iter()
            .map(|(name, t)| {
                let named = self.shape(name);
                let fits = self.wants(name) && named.iter().product::<usize>() == t.elements();
                let shape = if fits { named.to_vec() } else { t.shape().to_vec() };
                let values = t.values().iter();
                let (dtype, bytes) = if name.starts_with("gen/") {
                    // Ids, which f32 holds exactly.
                    (Dtype::I64, values.flat_map(|v| (*v as i64).to_le_bytes()).collect())
                } else {
                    (Dtype::F32, values.flat_map(|v| v.to_le_bytes()).collect())
                };
                (name.as_str(), shape, dtype, bytes)
            })
            .collect();
        let views: Vec<TensorView> = rows
            .iter()
            .map(|(name, shape, dtype, bytes)| TensorView { name, dtype: *dtype, shape, bytes })
            .collect();
        Ok(save_safetensors(path, &views, &BTreeMap::new())?)
    }
}

fn json(file: &Path) -> Result<Value, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::input(format!("cannot read {}: {e}", file.display())))?;
    serde_json::from_str(&text).map_err(|e| Failure::input(format!("{}: {e}", file.display())))
}

/// The folder beside `dir` that a field of the settings names.
fn neighbour_of(dir: &Path, settings: &Value, field: &str) -> Result<Option<PathBuf>, Failure> {
    let Some(name) = settings.get(field).and_then(Value::as_str) else { return Ok(None) };
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return Err(Failure::input(format!(
            "golden.json: {field} `{name}` is no neighbouring folder"
        )));
    }
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    Ok(Some(dir.parent().unwrap_or(Path::new(".")).join(name)))
}
