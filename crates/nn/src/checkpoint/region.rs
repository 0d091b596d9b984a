//! The bytes of one checkpoint file, mapped or in memory, and typed windows into them.

use std::borrow::Cow;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::error::{Error, Result};

/// A multiple of every page size in use, in bytes.
const PAGE: usize = 65_536;

/// The bytes of one file; clones share them.
#[derive(Clone, Debug)]
pub(super) enum Region {
    Mapped(Arc<Mmap>),
    Memory(Arc<Cow<'static, [u8]>>),
}

impl Region {
    /// Maps a regular file.
    pub(super) fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        // SAFETY: the map is private and read-only. As with every mapped loader, the file must
        // not be shortened while it is open; our own writer replaces files by rename and never
        // changes one in place.
        #[allow(unsafe_code, reason = "mapping a file is the only way to load without copying")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(Arc::new(map)))
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }

    /// Asks for the pages of `range` ahead of time, all at once rather than one fault after another.
    #[cfg(unix)]
    pub(super) fn fetch(&self, range: Range<usize>) {
        let Self::Mapped(map) = self else { return };
        if range.start < range.end && range.end <= map.len() {
            // A system that does not take the advice reads the pages when they are needed.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
    }

    /// Other systems decide themselves.
    #[cfg(not(unix))]
    pub(super) fn fetch(&self, _range: Range<usize>) {}

    /// Lets go of the pages that lie wholly in `range`; they are read again if they are needed.
    #[cfg(unix)]
    pub(super) fn release(&self, range: Range<usize>) {
        let Self::Mapped(map) = self else { return };
        let (first, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if first < end && end <= map.len() {
            // SAFETY: the map is private and never written, so its pages hold what the file holds
            // and come back the same.
            #[allow(unsafe_code, reason = "giving pages back is only possible so")]
            // A system that does not take the advice keeps the pages.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first)
            };
        }
    }

    /// Other systems decide themselves.
    #[cfg(not(unix))]
    pub(super) fn release(&self, _range: Range<usize>) {}

    /// `range` as f32s, if it lies in the region and this machine can read it in place.
    pub(super) fn f32s(&self, range: Range<usize>) -> Option<MappedF32> {
        if cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice::<u8, f32>(self.as_slice().get(range.clone())?).ok()?;
        Some(MappedF32 { region: self.clone(), range })
    }

    /// `range` of the bytes, if it lies in the region.
    pub(super) fn bytes(&self, range: Range<usize>) -> Option<MappedBytes> {
        self.as_slice().get(range.clone())?;
        Some(MappedBytes { region: self.clone(), range })
    }
}

/// A shared window of a checkpoint's bytes, as [`MappedF32`] is one of values.
#[derive(Clone, Debug)]
pub struct MappedBytes {
    region: Region,
    range: Range<usize>,
}

impl MappedBytes {
    /// Lets go of the memory of the bytes, which are read again if they are needed.
    pub(crate) fn release(&self) {
        self.region.release(self.range.clone());
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.region.as_slice()[self.range.clone()]
    }
}

/// A shared window of f32 values inside a checkpoint's bytes: cheap to clone, keeps the file
/// mapped for as long as it lives.
#[derive(Clone, Debug)]
pub struct MappedF32 {
    region: Region,
    range: Range<usize>,
}

impl MappedF32 {
    /// Lets go of the memory of the values, which are read again if they are needed.
    pub(crate) fn release(&self) {
        self.region.release(self.range.clone());
    }
}

impl Deref for MappedF32 {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // Bounds and alignment were checked by `Region::f32s`, and a region never moves.
        bytemuck::cast_slice(&self.region.as_slice()[self.range.clone()])
    }
}
