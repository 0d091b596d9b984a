//! Values of parameters that are not in a buffer of their own: in a file, in blocks, or not made yet.

use crate::checkpoint::{MappedBytes, MappedF32};
use ocelli_kernels::{Buffer, elementwise};
use ocelli_tensor::{BlockKind, Blocks, Mapped, Tensor};
use std::sync::{Arc, OnceLock};

/// Values of the largest parameter that is made without a checkpoint: 16 GiB.
const MOST_ELEMENTS: usize = 1 << 32;

pub(super) struct InMap(pub(super) MappedF32);

impl Mapped for InMap {
    fn values(&self) -> &[f32] {
        &self.0
    }

    fn rested(&self) -> Option<Arc<dyn Mapped>> {
        self.0.release();
        Some(Arc::new(Self(self.0.clone())))
    }
}

/// Values from several places of a file, one behind the other, brought together when somebody asks for
/// them.
pub(super) struct Joined {
    parts: Vec<MappedF32>,
    values: OnceLock<Buffer<f32>>,
}

impl Joined {
    pub(super) fn new(parts: Vec<MappedF32>) -> Self {
        Self { parts, values: OnceLock::new() }
    }

    /// Whether no value is infinite or not a number; looks at them where they are.
    pub(super) fn is_finite(&self) -> bool {
        self.parts.iter().all(|part| elementwise::is_finite(part))
    }

    fn release(&self) {
        self.parts.iter().for_each(MappedF32::release);
    }
}

impl Mapped for Joined {
    fn values(&self) -> &[f32] {
        self.values.get_or_init(|| {
            let mut values = Buffer::uninit(self.len());
            let mut at = 0;
            for part in &self.parts {
                values[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            self.release();
            values
        })
    }

    fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    fn rested(&self) -> Option<Arc<dyn Mapped>> {
        self.release();
        Some(Arc::new(Self::new(self.parts.clone())))
    }
}

/// Values in blocks, unpacked only if somebody asks for them.
pub(super) struct InBlocks {
    kind: BlockKind,
    shape: [usize; 2],
    bytes: Bytes,
    values: OnceLock<Vec<f32>>,
}

pub(super) enum Bytes {
    Mapped(MappedBytes),
    /// Made when somebody asks for them.
    Made(OnceLock<Vec<u8>>, Arc<dyn Fn() -> Vec<u8> + Send + Sync>),
    Own(Vec<u8>),
}

impl Bytes {
    /// Bytes that can be made again.
    pub(super) fn made(
        bytes: Vec<u8>,
        again: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::Made(OnceLock::from(bytes), Arc::new(again))
    }
}

impl InBlocks {
    /// A matrix of this shape; one of more axes has its last one as columns.
    pub(super) fn tensor(kind: BlockKind, bytes: Bytes, shape: &[usize]) -> Option<Tensor> {
        let cols = *shape.last()?;
        let rows = shape[..shape.len() - 1].iter().product();
        let held = Self { kind, shape: [rows, cols], bytes, values: OnceLock::new() };
        held.blocks()?;
        Tensor::from_mapped(Arc::new(held), shape).ok()
    }
}

impl Mapped for InBlocks {
    fn values(&self) -> &[f32] {
        self.values.get_or_init(|| self.blocks().map(|b| b.values()).unwrap_or_default())
    }

    fn len(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn blocks(&self) -> Option<Blocks<'_>> {
        let bytes = match &self.bytes {
            Bytes::Mapped(bytes) => &bytes[..],
            Bytes::Made(bytes, make) => bytes.get_or_init(&**make),
            Bytes::Own(bytes) => &bytes[..],
        };
        Blocks::new(self.kind, self.shape[0], self.shape[1], bytes)
    }

    fn block_kind(&self) -> Option<BlockKind> {
        Some(self.kind)
    }

    fn rested(&self) -> Option<Arc<dyn Mapped>> {
        let bytes = match &self.bytes {
            Bytes::Mapped(bytes) => {
                bytes.release();
                Bytes::Mapped(bytes.clone())
            }
            Bytes::Made(_, make) => Bytes::Made(OnceLock::new(), Arc::clone(make)),
            Bytes::Own(_) => return None,
        };
        Some(Arc::new(Self { kind: self.kind, shape: self.shape, bytes, values: OnceLock::new() }))
    }
}

/// Values that are made when somebody asks for them.
pub(super) struct Made {
    len: usize,
    make: Arc<dyn Fn() -> Vec<f32> + Send + Sync>,
    values: OnceLock<Vec<f32>>,
}

impl Made {
    /// A tensor of this shape, unless it is too large; `values` are there already, if any are given.
    pub(super) fn tensor(
        shape: &[usize],
        make: impl Fn() -> Vec<f32> + Send + Sync + 'static,
        values: Option<Vec<f32>>,
    ) -> Option<Tensor> {
        let len = shape.iter().try_fold(1_usize, |n, axis| n.checked_mul(*axis));
        let len = len.filter(|n| *n <= MOST_ELEMENTS)?;
        let values = values.map(OnceLock::from).unwrap_or_default();
        Tensor::from_mapped(Arc::new(Self { len, make: Arc::new(make), values }), shape).ok()
    }

    /// Zeros.
    pub(super) fn zeros(shape: &[usize]) -> Option<Tensor> {
        let len = shape.iter().fold(1_usize, |n, axis| n.saturating_mul(*axis));
        Self::tensor(shape, move || vec![0.0; len], None)
    }
}

impl Mapped for Made {
    fn values(&self) -> &[f32] {
        self.values.get_or_init(&*self.make)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn rested(&self) -> Option<Arc<dyn Mapped>> {
        let make = Arc::clone(&self.make);
        Some(Arc::new(Self { len: self.len, make, values: OnceLock::new() }))
    }
}
