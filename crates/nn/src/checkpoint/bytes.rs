//! Weights as bytes with a scale for each row: `X` of type i8 beside `X_scale`, f32, as tools of
//! post-training quantisation write them.
//!
//! Reading multiplies them out. Linear layers whose weight comes out of such bytes multiply in bytes,
//! which gives back the bytes of the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ocelli_tensor::to_bytes;

use super::compose::Change;
use super::error::{Error, Result};
use super::{Checkpoint, Dtype, TensorView, save_safetensors};

/// Behind the name of a tensor whose rows are multiplied by what it holds.
const SCALE: &str = "_scale";

impl Checkpoint {
    /// Joins every tensor of bytes with its scales, which are no tensor of their own from here on.
    pub(super) fn take_scales(&mut self) -> Result<()> {
        let is_bytes = |name: &&String| self.entries[*name].0.dtype == Dtype::I8;
        let names: Vec<String> = self.entries.keys().filter(is_bytes).cloned().collect();
        for name in names {
            let of = format!("{name}{SCALE}");
            let Some((dtype, found)) = self.info(&of) else { continue };
            let rows = self.info(&name).and_then(|(_, shape)| shape.first().copied()).unwrap_or(0);
            if found.iter().product::<usize>() != rows {
                return Err(Error::Tensor {
                    path: self.file_of(&of).unwrap_or(Path::new("")).to_owned(),
                    reason: format!(
                        "expected {rows} numbers, one for each row of {name}, found {} {found:?}; \
                         write the file anew",
                        dtype.name()
                    ),
                    tensor: of,
                });
            }
            let scales = self.read_f32(&of)?;
            self.entries.remove(&of);
            self.changes.entry(name).or_default().push(Change::Scales(scales.into()));
        }
        Ok(())
    }

    /// Whether a tensor is nothing but bytes with a scale for each row.
    pub fn is_in_bytes(&self, name: &str) -> bool {
        matches!(self.changes.get(name).map(|c| &c[..]), Some([Change::Scales(_)]))
    }

    /// Writes these tensors to a safetensors file, those of `weights` `[outputs, ..]` as bytes with a
    /// scale for each output (symmetric, the largest value of a row is 127), the others as they are.
    ///
    /// # Errors
    /// If a tensor cannot be read or has values that are not finite, or the file cannot be written.
    pub fn save_in_bytes(&self, path: &Path, weights: &BTreeSet<String>) -> Result<()> {
        let mut owned: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for name in self.names() {
            let (dtype, shape) = self.info(name).unwrap_or((Dtype::F32, &[]));
            let rows = shape.first().copied().unwrap_or(0);
            let is_stored_as_it_is = !self.is_changed(name) && dtype.block_len() == 1;
            if !weights.contains(name) || rows == 0 {
                let (dtype, bytes) = if is_stored_as_it_is {
                    (dtype, self.bytes(name)?.into_owned())
                } else {
                    (Dtype::F32, little_endian(&self.read_f32(name)?))
                };
                owned.push((name.to_owned(), dtype, shape.to_vec(), bytes));
                continue;
            }
            let values = self.read_f32(name)?;
            let (mut bytes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
            for row in values.chunks_exact((values.len() / rows).max(1)) {
                let (row, scale) = to_bytes(row);
                if !scale.is_finite() {
                    return Err(Error::Tensor {
                        path: self.file_of(name).unwrap_or(Path::new("")).to_owned(),
                        tensor: name.to_owned(),
                        reason: "a value is not finite; fetch or train the model anew".to_owned(),
                    });
                }
                bytes.extend(row.into_iter().map(i8::cast_unsigned));
                scales.push(scale);
            }
            owned.push((name.to_owned(), Dtype::I8, shape.to_vec(), bytes));
            owned.push((format!("{name}{SCALE}"), Dtype::F32, vec![rows], little_endian(&scales)));
        }
        let views: Vec<TensorView> = owned
            .iter()
            .map(|(name, dtype, shape, bytes)| TensorView { name, dtype: *dtype, shape, bytes })
            .collect();
        save_safetensors(path, &views, &BTreeMap::new())
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;
    use crate::{Builder, Init, Names};
    use std::sync::Arc;

    fn save(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
        let views: Vec<TensorView> = tensors
            .iter()
            .map(|&(name, dtype, shape, bytes)| TensorView { name, dtype, shape, bytes })
            .collect();
        save_safetensors(path, &views, &BTreeMap::new()).unwrap();
    }

    #[test]
    fn bytes_and_scales_come_back_as_the_nearest_values() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
        let values: Vec<f32> =
            (0..12 * 40).map(|i| (i as f32 * 0.7).sin() * (1 + i / 40) as f32).collect();
        let (weight, bias) = (little_endian(&values), little_endian(&[0.25; 12]));
        save(
            &from,
            &[("x.weight", Dtype::F32, &[12, 40], &weight), ("x.bias", Dtype::F32, &[12], &bias)],
        );
        let plain = Checkpoint::open(&from).unwrap();
        plain.save_in_bytes(&to, &["x.weight".to_owned()].into()).unwrap();

        let read = Checkpoint::open(&to).unwrap();
        assert_eq!(read.names().collect::<Vec<_>>(), ["x.bias", "x.weight"]);
        assert!(read.is_in_bytes("x.weight") && !read.is_in_bytes("x.bias"));
        assert_eq!(read.read_f32("x.bias").unwrap(), [0.25; 12]);
        let near = read.read_f32("x.weight").unwrap();
        for (row, (near, values)) in near.chunks(40).zip(values.chunks(40)).enumerate() {
            let step = values.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / 127.0;
            for (near, value) in near.iter().zip(values) {
                assert!((near - value).abs() <= 0.501 * step, "row {row}: {near} for {value}");
            }
        }
        // Written again, they are the same bytes.
        let again = dir.path().join("c.safetensors");
        read.save_in_bytes(&again, &["x.weight".to_owned()].into()).unwrap();
        let again = Checkpoint::open(&again).unwrap();
        assert_eq!(again.bytes("x.weight").unwrap(), read.bytes("x.weight").unwrap());

        let b = Builder::load(Arc::new(read), vec![Names::ours()]);
        let weight = b.at("x").weight("weight", &[12, 40], Init::Constant(0.0));
        let bias = b.at("x").parameter("bias", &[12], Init::Constant(0.0));
        b.finish().unwrap();
        assert_eq!((weight.narrow(), bias.narrow()), (Some(ocelli_tensor::Narrow::Int8), None));
    }

    #[test]
    fn scales_of_another_number_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        save(&path, &[("w", Dtype::I8, &[2, 3], &[1; 6]), ("w_scale", Dtype::F32, &[3], &[0; 12])]);
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        for part in ["a.safetensors", "w_scale", "expected 2 numbers", "[3]"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
