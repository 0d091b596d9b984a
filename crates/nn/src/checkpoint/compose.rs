//! Checkpoints put together: one over another, a difference added to its base, changes of low rank.
//!
//! Composition is a matter of names. The whole stays a [`Checkpoint`], whose tensors know the file
//! that they come from, and whoever reads it need not know that it was composed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::Checkpoint;
use super::error::{Error, Result};

/// What is done to a tensor when it is read.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A tensor of the same rows, or of the first ones.
    Rows { base: Arc<Checkpoint>, name: String },
    /// Rows that are multiplied by a number each.
    Scales(Arc<[f32]>),
    /// `scale` times the product of `b` `[outputs, rank]` and `a` `[rank, inputs]`.
    LowRank { adapter: Arc<Checkpoint>, a: String, b: String, scale: f32, transposed: bool },
}

impl Change {
    fn apply(&self, values: &mut [f32]) -> Result<()> {
        match self {
            Self::Rows { base, name } => {
                for (value, more) in values.iter_mut().zip(base.read_f32(name)?) {
                    *value += more;
                }
            }
            Self::Scales(scales) => {
                let cols = values.len() / scales.len().max(1);
                for (row, scale) in values.chunks_exact_mut(cols.max(1)).zip(&scales[..]) {
                    row.iter_mut().for_each(|value| *value *= scale);
                }
            }
            Self::LowRank { adapter, a, b, scale, transposed } => {
                let (down, up) = (adapter.read_f32(a)?, adapter.read_f32(b)?);
                let rank = adapter.info(a).map_or(1, |(_, shape)| shape[0]).max(1);
                let inputs = down.len() / rank;
                let mut row = vec![0.0; inputs];
                for (o, up) in up.chunks_exact(rank).enumerate() {
                    row.fill(0.0);
                    for (up, down) in up.iter().zip(down.chunks_exact(inputs.max(1))) {
                        row.iter_mut().zip(down).for_each(|(sum, down)| *sum += up * down);
                    }
                    let outputs = values.len() / inputs.max(1);
                    for (i, change) in row.iter().enumerate() {
                        let at = if *transposed { i * outputs + o } else { o * inputs + i };
                        values[at] += scale * change;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Checkpoint {
    /// These tensors and those of `top`, which win where both have one. `rename` gives the names
    /// here of `top`'s tensors; those that it gives none are left out.
    #[must_use]
    pub fn over(mut self, top: &Self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let first = self.files.len();
        self.files.extend(top.files.iter().cloned());
        self.has_values &= top.has_values;
        for (name, (entry, file)) in &top.entries {
            let Some(renamed) = rename(name) else { continue };
            self.changes.remove(&renamed);
            if let Some(changes) = top.changes.get(name) {
                self.changes.insert(renamed.clone(), changes.clone());
            }
            self.entries.insert(renamed, (entry.clone(), first + file));
        }
        self
    }

    /// The sum of these tensors and those of `base` of the same name; where these have more rows, as
    /// a table with words added has, the further ones stay as they are.
    ///
    /// # Errors
    /// [`Error::Unfit`] if shapes differ otherwise, or no name is in both.
    pub fn plus(mut self, base: &Arc<Self>) -> Result<Self> {
        let mut common = 0;
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            let (Some((_, found)), Some((_, of_base))) = (self.info(&name), base.info(&name))
            else {
                continue;
            };
            let fits = found.len() == of_base.len()
                && found.first() >= of_base.first()
                && found.get(1..) == of_base.get(1..);
            if !fits {
                let expected = format!("{of_base:?}, or more rows, as {}", base.first_file());
                let action = "the difference was taken from another model: name that as the base";
                return Err(self.unfit(&name, &expected, &format!("{found:?}"), action));
            }
            common += 1;
            let change = Change::Rows { base: Arc::clone(base), name: name.clone() };
            self.changes.entry(name).or_default().push(change);
        }
        if common == 0 {
            let name = self.entries.keys().next().cloned().unwrap_or_default();
            let expected = format!("tensors that {} has too", base.first_file());
            let action = "name the model that the difference was taken from as the base";
            return Err(self.unfit(&name, &expected, "none", action));
        }
        Ok(self)
    }

    /// The same with changes of low rank (Hu et al. 2021, arXiv:2106.09685) added to their tensors,
    /// as peft writes them: `X.lora_A.weight` and `X.lora_B.weight` change `X.weight`. `rename` gives
    /// the name here of `X.weight`; `base_name` is what `adapter` says it was trained on. `transposed`
    /// says that the changed tensors are `[inputs, outputs]`.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a change of a tensor that is not here or has another shape, and for
    /// tensors that are no changes.
    pub fn with_low_rank(
        mut self,
        adapter: &Arc<Self>,
        scale: f32,
        transposed: bool,
        base_name: &str,
        rename: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let action = format!(
            "the adapter was trained on another model ({base_name}): load it together with that one"
        );
        for a in adapter.names() {
            let Some((stem, rest)) = a.split_once(".lora_A.") else {
                if a.contains(".lora_B.") {
                    continue;
                }
                let expected = "names with .lora_A. and .lora_B.";
                let action = "only adapters of this kind are read; merge it in Python first";
                return Err(adapter.unfit(a, expected, "neither", action));
            };
            let b = format!("{stem}.lora_B.{rest}");
            let target = format!("{stem}.weight");
            let Some(target) = rename(&target).filter(|t| self.entries.contains_key(t)) else {
                let expected = format!("a tensor {target} to change in {}", self.first_file());
                return Err(adapter.unfit(a, &expected, "none", &action));
            };
            let shape = |of: &Self, name: &str| of.info(name).map(|(_, s)| s.to_vec());
            let mut want = shape(&self, &target).unwrap_or_default();
            if transposed {
                want.reverse();
            }
            let (down, up) = (shape(adapter, a), shape(adapter, &b));
            let (Some(&[rank, inputs]), &[outputs, of]) = (down.as_deref(), &want[..]) else {
                let expected = format!("a matrix for the matrix {target}");
                return Err(adapter.unfit(a, &expected, &format!("{down:?}"), &action));
            };
            if inputs != of || rank == 0 {
                let expected = format!("[rank, inputs={of}] as {target} is {want:?}");
                return Err(adapter.unfit(a, &expected, &format!("[{rank}, {inputs}]"), &action));
            }
            if up.as_deref() != Some(&[outputs, rank]) {
                let expected = format!("[outputs={outputs}, rank={rank}] as {target} is {want:?}");
                let found = up.map_or_else(|| "none".to_owned(), |up| format!("{up:?}"));
                return Err(adapter.unfit(&b, &expected, &found, &action));
            }
            let (a, adapter) = (a.to_owned(), Arc::clone(adapter));
            let change = Change::LowRank { adapter, a, b, scale, transposed };
            self.changes.entry(target).or_default().push(change);
        }
        Ok(self)
    }

    /// The tensor's values with its changes.
    pub(super) fn changed(&self, name: &str, mut values: Vec<f32>) -> Result<Vec<f32>> {
        for change in self.changes.get(name).into_iter().flatten() {
            change.apply(&mut values)?;
        }
        Ok(values)
    }

    /// Whether something is added to a tensor, so that its bytes are not its values.
    pub(super) fn is_changed(&self, name: &str) -> bool {
        self.changes.contains_key(name)
    }

    fn first_file(&self) -> String {
        self.files.first().map_or_else(String::new, |(path, _)| path.display().to_string())
    }

    fn unfit(&self, tensor: &str, expected: &str, found: &str, action: &str) -> Error {
        let file = self.file_of(tensor).unwrap_or(Path::new(""));
        let (tensor, action) = (tensor.to_owned(), action.to_owned());
        let reason = format!("expected {expected}, found {found}");
        Error::Unfit { path: file.to_owned(), tensor, reason, action }
    }
}

/// Changes by the tensor that they belong to.
pub(super) type Changes = BTreeMap<String, Vec<Change>>;

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::super::{Dtype, TensorView, save_safetensors};
    use super::*;

    fn checkpoint(dir: &Path, name: &str, tensors: &[(&str, &[usize], &[f32])]) -> Checkpoint {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views: Vec<TensorView> = tensors
            .iter()
            .zip(&bytes)
            .map(|(t, bytes)| TensorView { name: t.0, dtype: Dtype::F32, shape: t.1, bytes })
            .collect();
        let file = dir.join(name);
        save_safetensors(&file, &views, &BTreeMap::new()).unwrap();
        Checkpoint::open(&file).unwrap()
    }

    #[test]
    fn the_top_wins_and_knows_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let base =
            checkpoint(dir.path(), "a.safetensors", &[("x", &[1], &[1.]), ("y", &[1], &[2.])]);
        let top =
            checkpoint(dir.path(), "b.safetensors", &[("p.x", &[1], &[3.]), ("q", &[1], &[4.])]);
        let whole = base.over(&top, |name| name.strip_prefix("p.").map(str::to_owned));
        assert_eq!(whole.names().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(whole.read_f32("x").unwrap(), [3.0]);
        assert!(whole.file_of("x").unwrap().ends_with("b.safetensors"));
        assert!(whole.file_of("y").unwrap().ends_with("a.safetensors"));
    }

    #[test]
    fn differences_and_changes_of_low_rank_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let base = [("x.weight", &[2, 2][..], &[1., 2., 3., 4.][..])];
        let base = Arc::new(checkpoint(dir.path(), "base.safetensors", &base));
        let more: [(&str, &[usize], &[f32]); 1] =
            [("x.weight", &[3, 2], &[1., 1., 1., 1., 7., 8.])];
        let delta = checkpoint(dir.path(), "delta.safetensors", &more);
        let sum = delta.plus(&base).unwrap();
        assert_eq!(sum.read_f32("x.weight").unwrap(), [2., 3., 4., 5., 7., 8.]);
        assert!(sum.mapped_f32("x.weight").is_none());

        let low: [(&str, &[usize], &[f32]); 2] = [
            ("m.x.lora_A.weight", &[1, 2], &[1., 10.]),
            ("m.x.lora_B.weight", &[3, 1], &[1., 2., 3.]),
        ];
        let low = Arc::new(checkpoint(dir.path(), "low.safetensors", &low));
        let bare = |name: &str| name.strip_prefix("m.").map(str::to_owned);
        let whole = sum.with_low_rank(&low, 0.5, false, "it", bare).unwrap();
        assert_eq!(whole.read_f32("x.weight").unwrap(), [2.5, 8., 5., 15., 8.5, 23.]);

        let other: [(&str, &[usize], &[f32]); 1] = [("x.weight", &[2, 3], &[0.; 6])];
        let other = checkpoint(dir.path(), "other.safetensors", &other);
        let error = other.with_low_rank(&low, 1.0, false, "it", bare).unwrap_err().to_string();
        for part in ["low.safetensors", "m.x.lora_A.weight", "inputs=3", "[1, 2]", "(it)"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    /// Piece by piece is as all at once, over the end of a piece too, and stacked.
    #[test]
    fn blocks_are_those_of_the_whole_tensor() {
        use crate::{Builder, Init, Names, concat};
        use ocelli_tensor::{BlockKind, Blocks, quantise};
        let dir = tempfile::tempdir().unwrap();
        let (rows, cols) = (super::super::PIECE / 1024 + 3, 1024);
        let values: Vec<u16> =
            (0..rows * cols).map(|i| 0x3E00 + (i * 2_654_435_761 % 0x1FF) as u16).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let half = bytes.len() / rows;
        let views = [("a", &[rows, cols][..], &bytes[..]), ("b.q", &[1, cols], &bytes[..half])];
        let mut views: Vec<TensorView> = (views.into_iter())
            .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::Bf16, shape, bytes })
            .collect();
        views.push(TensorView { name: "b.k", bytes: &bytes[half..2 * half], ..views[1] });
        let file = dir.path().join("w.safetensors");
        save_safetensors(&file, &views, &BTreeMap::new()).unwrap();
        for kind in [BlockKind::Q4_0, BlockKind::Q8_0] {
            let plain = Checkpoint::open(&file).unwrap();
            let held = Arc::new(Checkpoint::open(&file).unwrap().quantised(kind));
            let names = Names::family(&[concat("a", "a"), concat("b", "b.{q,k}")], &[]);
            let b = Builder::load(held, vec![names]);
            let (a, stacked) = (
                b.weight("a", &[rows, cols], Init::Constant(0.0)),
                b.weight("b", &[2, cols], Init::Constant(0.0)),
            );
            b.finish().unwrap();
            let all = plain.read_f32("a").unwrap();
            for (parameter, values) in [(a, &all[..]), (stacked, &all[..2 * cols])] {
                let want = quantise(kind, values);
                let tensor = parameter.tensor();
                let blocks = tensor.blocks().unwrap();
                let cols = blocks.shape()[1];
                let want = Blocks::new(kind, values.len() / cols, cols, &want).unwrap();
                assert!(blocks.values() == want.values(), "{kind:?}: blocks differ");
            }
        }
    }
}
