//! Where the numbers lie.

use ocelli_kernels::Buffer;
use ocelli_kernels::quant::{BlockKind, Blocks};
use std::sync::Arc;

/// A type of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// 32-bit floating point.
    F32,
    /// The upper half of an f32.
    Bf16,
}

/// Read-only f32 values that live elsewhere, such as in a memory-mapped checkpoint.
pub trait Mapped: Send + Sync {
    /// The values.
    fn values(&self) -> &[f32];

    /// The number of values.
    fn len(&self) -> usize {
        self.values().len()
    }

    /// Whether there are no values.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same values again, taking no memory until somebody asks for them; `None` if there is no
    /// other place to have them from.
    fn rested(&self) -> Option<Arc<dyn Mapped>> {
        None
    }

    /// The same values in blocks of few bits, if they are held so; then [`Mapped::values`] may take
    /// the time and the memory to unpack them.
    fn blocks(&self) -> Option<Blocks<'_>> {
        None
    }

    /// The kind of those blocks.
    fn block_kind(&self) -> Option<BlockKind> {
        self.blocks().map(|blocks| blocks.kind())
    }
}

/// The values of a tensor, shared between its copies.
#[derive(Clone)]
pub enum Storage {
    /// f32 in pooled memory.
    F32(Arc<Buffer<f32>>),
    /// bf16 in pooled memory.
    Bf16(Arc<Buffer<u16>>),
    /// f32 in a mapped file; copied when written.
    Mapped(Arc<dyn Mapped>),
}

impl Storage {
    /// The type of number.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) | Self::Mapped(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
        }
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(b) => b.len(),
            Self::Bf16(b) => b.len(),
            Self::Mapped(m) => m.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rounds to the nearest bf16, ties to even.
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// The f32 with the same value.
pub(crate) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
