//! Checkpoint files: safetensors, PyTorch archives, NumPy archives, GGUF, the hub cache.
//!
//! [`Checkpoint::open`] takes a weights file or a model directory and gives named tensors as
//! plain bytes, `f32`s or `i64`s; it knows nothing of layers. Files are mapped, so opening costs
//! the headers only. [`save_safetensors`] writes; [`hub::resolve`] turns a model's name into a path.
//!
//! Every format is read as hostile input: offsets and sizes are checked against the file before
//! anything is allocated, and pickles are interpreted, never executed (`pickle.rs` has the rule).

mod archive;
mod bytes;
mod compose;
mod destination;
mod dtype;
mod entry;
mod error;
pub mod gguf;
pub mod hub;
mod k_blocks;
mod locate;
mod npz;
mod pickle;
mod region;
mod safetensors;
mod torch;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use destination::destination;
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use region::{MappedBytes, MappedF32};
pub use safetensors::save_safetensors;

use entry::Entry;
use ocelli_tensor::{BLOCK, BlockKind, quantise};
use region::Region;

/// A tensor to be written: row-major, little-endian `bytes`.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The tensor's name in the file.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Sizes of its axes; empty for a scalar.
    pub shape: &'a [usize],
    /// Its elements.
    pub bytes: &'a [u8],
}

/// What one file holds, by name.
#[derive(Default)]
struct Contents {
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// Values that are brought into blocks at a time, a multiple of [`BLOCK`].
const PIECE: usize = 8 << 20;

/// Named tensors in one or several files, checked on opening and read on demand.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Region)>,
    /// The tensor and the index of its file.
    entries: BTreeMap<String, (Entry, usize)>,
    metadata: BTreeMap<String, String>,
    quantised: Option<BlockKind>,
    has_values: bool,
    is_read: bool,
    changes: compose::Changes,
}

impl Default for Checkpoint {
    /// A checkpoint without tensors, to put others [`Checkpoint::over`].
    fn default() -> Self {
        Self::empty()
    }
}

impl Checkpoint {
    /// Opens a weights file or a model directory.
    ///
    /// A file's format is told from its first bytes. In a directory the first of these wins:
    /// `model.safetensors`, `model.safetensors.index.json` and its shards,
    /// `open_clip_model.safetensors`, `pytorch_model.bin`, `pytorch_model.bin.index.json` and its
    /// shards, `open_clip_pytorch_model.bin`, then the only `*.npz`, the only `*.pt` or `*.pth`,
    /// the only `*.safetensors`, the only `*.gguf`. An index file may also be given itself.
    ///
    /// # Errors
    /// Any [`Error`] but the hub's: the file is missing, ambiguous, damaged or refused.
    pub fn open(path: &Path) -> Result<Self> {
        let located = locate::weights(path)?;
        let mut checkpoint = Self::empty();
        for file in located.files {
            let region = Region::map(&file)?;
            checkpoint.add(file, region)?;
        }
        checkpoint.take_scales()?;
        for (tensor, file) in located.index {
            let found = checkpoint.entries.get(&tensor).map(|&(_, file)| &checkpoint.files[file].0);
            if found != Some(&file) {
                return Err(Error::MissingTensor { path: file, tensor });
            }
        }
        Ok(checkpoint)
    }

    /// Opens a weights file that is already in memory, such as one inside the program
    /// (`&'static [u8]`) or a `Vec<u8>`. Errors call it `<memory>`.
    ///
    /// # Errors
    /// As for [`Checkpoint::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let mut checkpoint = Self::empty();
        checkpoint.add("<memory>".into(), Region::Memory(Arc::new(bytes.into())))?;
        checkpoint.take_scales()?;
        Ok(checkpoint)
    }

    /// A checkpoint of shapes alone, which `path` lists: a model can be built from it, but its values
    /// are not there.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a shape whose size overflows.
    pub fn of_shapes(path: &Path, shapes: BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let mut checkpoint = Self { has_values: false, ..Self::empty() };
        for (name, shape) in shapes {
            let size = shape.iter().try_fold(Dtype::F32.size(), |n, axis| n.checked_mul(*axis));
            let source = entry::Source::Unknown { size: size.unwrap_or(0) };
            let entry = Entry::contiguous(Dtype::F32, shape, source, 0).map_err(|reason| {
                Error::Tensor { path: path.to_owned(), tensor: name.clone(), reason }
            })?;
            checkpoint.entries.insert(name, (entry, 0));
        }
        checkpoint.files.push((path.to_owned(), Region::Memory(Arc::new(Cow::Borrowed(&[])))));
        Ok(checkpoint)
    }

    /// Whether there are values, and not shapes alone.
    pub fn has_values(&self) -> bool {
        self.has_values
    }

    fn empty() -> Self {
        let (files, entries, metadata) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let changes = compose::Changes::new();
        Self { files, entries, metadata, quantised: None, has_values: true, is_read: true, changes }
    }

    fn add(&mut self, path: PathBuf, region: Region) -> Result<()> {
        let contents = read_file(&path, region.as_slice())?;
        for (name, entry) in contents.entries {
            match self.entries.entry(name) {
                Slot::Vacant(slot) => slot.insert((entry, self.files.len())),
                Slot::Occupied(slot) => {
                    let other = self.files[slot.get().1].0.clone();
                    return Err(Error::Duplicate { path, other, tensor: slot.key().clone() });
                }
            };
        }
        self.metadata.extend(contents.metadata);
        self.files.push((path, region));
        Ok(())
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.entries.get(name).map(|(entry, _)| (entry.dtype, &entry.shape[..]))
    }

    /// A tensor's elements as row-major, little-endian bytes; borrowed from the file where it
    /// stores them so, gathered or decompressed otherwise. What is added to a tensor is not in them.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::Tensor`] if a compressed file turns out damaged.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let (entry, file) = self.entry(name)?;
        let (path, region) = &self.files[*file];
        entry.read(region.as_slice()).map_err(|reason| Error::Tensor {
            path: path.clone(),
            tensor: name.into(),
            reason,
        })
    }

    /// A tensor's elements as f32, from any element type; exact for f16 and bf16. The pages of a
    /// mapped file that it was read from are given back.
    ///
    /// # Errors
    /// As for [`Checkpoint::bytes`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, file) = self.entry(name)?;
        if let Some(range) = entry.file_range() {
            self.files[*file].1.fetch(range);
        }
        let values = entry.dtype.to_f32(&self.bytes(name)?);
        if let Some(range) = entry.file_range() {
            self.files[*file].1.release(range);
        }
        self.changed(name, values)
    }

    /// A tensor's values in blocks of few bits, and whether all of them are finite. They are read and
    /// made into blocks piece by piece, so that never more than a piece is there in f32. `None` if
    /// the file does not hold plain rows of whole blocks.
    ///
    /// # Errors
    /// As for [`Checkpoint::bytes`].
    pub(crate) fn read_quantised(
        &self,
        name: &str,
        kind: BlockKind,
    ) -> Result<Option<(Vec<u8>, bool)>> {
        let (entry, file) = self.entry(name)?;
        let region = &self.files[*file].1;
        let is_plain = !self.is_changed(name) && entry.dtype.block_len() == 1;
        let rows_are_whole = entry.shape.last().is_some_and(|cols| cols.is_multiple_of(BLOCK));
        let range = entry.file_range().filter(|_| is_plain && rows_are_whole);
        let Some(range) = range else { return Ok(None) };
        let piece = PIECE * entry.dtype.size();
        let piece_at = |start: usize| start..range.end.min(start + piece);
        let mut blocks =
            Vec::with_capacity(range.len() / entry.dtype.size() / BLOCK * kind.bytes());
        let mut is_finite = true;
        region.fetch(piece_at(range.start));
        for start in range.clone().step_by(piece) {
            let here = piece_at(start);
            // The next piece arrives meanwhile.
            region.fetch(piece_at(here.end));
            let values = entry.dtype.to_f32(&region.as_slice()[here.clone()]);
            is_finite &= values.iter().all(|v| v.is_finite());
            blocks.extend(quantise(kind, &values));
            region.release(here);
        }
        Ok(Some((blocks, is_finite)))
    }

    /// A tensor's elements as i64, from any integer type or bool.
    ///
    /// # Errors
    /// As for [`Checkpoint::bytes`], and [`Error::Dtype`] for floating-point elements.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>> {
        let (entry, file) = self.entry(name)?;
        entry.dtype.to_i64(&self.bytes(name)?).ok_or_else(|| Error::Dtype {
            path: self.files[*file].0.clone(),
            tensor: name.into(),
            found: entry.dtype.name().into(),
            expected: "an integer type",
        })
    }

    /// A tensor's elements without a copy, if the file stores them as aligned, row-major f32s.
    pub fn mapped_f32(&self, name: &str) -> Option<MappedF32> {
        let (entry, file) = self.entries.get(name)?;
        if entry.dtype != Dtype::F32 || self.is_changed(name) {
            return None;
        }
        self.files[*file].1.f32s(entry.file_range()?)
    }

    /// Whether a tensor's values lie in a mapped file and nothing is added to them, so that they can be
    /// read again at any time.
    pub(crate) fn is_mapped(&self, name: &str) -> bool {
        let Some((entry, file)) = self.entries.get(name) else { return false };
        let is_in_map = matches!(self.files[*file].1, Region::Mapped(_));
        let is_plain = !self.is_changed(name) || self.is_in_bytes(name);
        is_in_map && is_plain && entry.file_range().is_some()
    }

    /// A tensor in blocks of few bits as the file holds it, if kernels read such blocks as they are.
    pub fn blocks(&self, name: &str) -> Option<(BlockKind, MappedBytes)> {
        let (entry, file) = self.entries.get(name)?;
        let kind = entry.dtype.block_kind().filter(|_| !self.is_changed(name))?;
        Some((kind, self.files[*file].1.bytes(entry.file_range()?)?))
    }

    /// Weights of linear layers are held in these blocks from now on; see
    /// [`crate::Builder::weight`].
    #[must_use]
    pub fn quantised(self, kind: BlockKind) -> Self {
        Self { quantised: Some(kind), ..self }
    }

    /// The same, of which no values are read: a model of it is built of zeros, to see what it will
    /// take.
    #[must_use]
    pub fn unread(self) -> Self {
        Self { is_read: false, ..self }
    }

    /// Whether values are read when a model is built of it.
    pub(crate) fn is_read(&self) -> bool {
        self.is_read && self.has_values
    }

    /// The same, held and read as another part of the same model.
    #[must_use]
    pub fn as_part_of(self, whole: &Self) -> Self {
        Self { quantised: whole.quantised, is_read: whole.is_read, ..self }
    }

    /// The blocks that a tensor is in, if kernels read such blocks as they are.
    pub(crate) fn block_kind(&self, name: &str) -> Option<BlockKind> {
        let (entry, _) = self.entries.get(name)?;
        entry.dtype.block_kind().filter(|_| !self.is_changed(name))
    }

    /// What weights of linear layers are brought into.
    pub(crate) fn quantised_to(&self) -> Option<BlockKind> {
        self.quantised
    }

    /// The file's own notes: the safetensors `__metadata__`, or the plain numbers and strings
    /// beside a pickled state dict.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The file that holds a tensor, `None` if no file does.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.entries.get(name).map(|&(_, file)| &*self.files[file].0)
    }

    /// The number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The size of all tensors after reading, in bytes.
    pub fn total_bytes(&self) -> usize {
        self.entries.values().map(|(entry, _)| entry.size()).fold(0, usize::saturating_add)
    }

    fn entry(&self, name: &str) -> Result<&(Entry, usize)> {
        self.entries.get(name).ok_or_else(|| Error::MissingTensor {
            path: self.files.first().map_or_else(PathBuf::new, |(path, _)| path.clone()),
            tensor: name.into(),
        })
    }
}

/// Reads one file by what its first bytes say it is.
fn read_file(path: &Path, file: &[u8]) -> Result<Contents> {
    let unsupported = |found: &str, action| {
        Err(Error::Unsupported { path: path.to_path_buf(), found: found.into(), action })
    };
    if file.starts_with(b"PK\x03\x04") {
        let members = archive::members(path, file)?;
        return if torch::is_archive(&members) {
            torch::read_archive(path, file, &members)
        } else {
            npz::read(path, file, &members)
        };
    }
    if file.starts_with(b"version https://git-lfs") {
        return unsupported("a Git LFS pointer", "fetch the file itself with `git lfs pull`");
    }
    if file.starts_with(gguf::MAGIC) {
        return gguf::read(path, file);
    }
    // A safetensors header is a JSON object, and it starts at byte 8.
    let pickled = file.first() == Some(&0x80)
        || path
            .extension()
            .is_some_and(|e| ["bin", "pt", "pth", "ckpt", "pkl"].iter().any(|p| e == *p));
    if pickled && file.get(8) != Some(&b'{') {
        return torch::read_legacy(path, file);
    }
    safetensors::read(path, file)
}

#[cfg(test)]
mod tests;
