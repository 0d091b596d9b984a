//! A right operand in blocks, in the order that the kernels read.

use super::{BLOCK, BlockKind, Blocks};
use crate::buffer::Buffer;
use crate::pool::{Shared, parallel_for};
use crate::simd::Isa;

/// Bytes of neighbouring codes of a column that lie together.
pub(super) const WORD: usize = 4;

/// Columns of a panel: those of a vector, so that a panel is read from end to end.
pub(super) const fn panel_width(isa: Isa) -> usize {
    isa.lanes()
}

/// A right operand in blocks, ordered for the kernels: panel by panel, a panel block by block along
/// the inner dimension. A block of a panel is its scales, its lowest values if it has any, and then
/// its codes: four bytes of each column, the next four bytes of each, and so on.
#[derive(Debug)]
pub struct PackedBlocks {
    data: Buffer<u8>,
    kind: BlockKind,
    k: usize,
    n: usize,
    isa: Isa,
}

impl PackedBlocks {
    /// Packs the transpose of a weight `[n, k]`, on all threads.
    pub fn new(weight: Blocks) -> Self {
        Self::for_isa(super::product::best_isa(), weight)
    }

    pub(crate) fn for_isa(isa: Isa, weight: Blocks) -> Self {
        let Blocks { kind, rows: n, cols: k, .. } = weight;
        let (width, head) = (panel_width(isa), kind.head());
        let block = width * kind.bytes();
        let panel = k / BLOCK * block;
        let panels = n.div_ceil(width);
        let mut data = Buffer::<u8>::zeroed(panels * panel);
        let out = Shared::new(&mut data);
        parallel_for(panels, |p| {
            // SAFETY: each task writes its own panel, which lies inside of the buffer.
            let to = unsafe { std::slice::from_raw_parts_mut(out.get().add(p * panel), panel) };
            // Columns that are missing in the last panel keep scale 0.
            for (col, row) in (p * width..n.min((p + 1) * width)).enumerate() {
                let blocks = weight.row_bytes(row).chunks_exact(kind.bytes());
                for (from, to) in blocks.zip(to.chunks_exact_mut(block)) {
                    for (i, half) in from[..head].chunks_exact(2).enumerate() {
                        to[2 * (i * width + col)..][..2].copy_from_slice(half);
                    }
                    for (w, word) in from[head..].chunks_exact(WORD).enumerate() {
                        let at = head * width + WORD * (w * width + col);
                        to[at..][..WORD].copy_from_slice(word);
                    }
                }
            }
        });
        Self { data, kind, k, n, isa }
    }

    /// Inner dimension.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(super) fn kind(&self) -> BlockKind {
        self.kind
    }

    /// The instruction set that it is packed for.
    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// Columns of a panel.
    pub(super) fn width(&self) -> usize {
        panel_width(self.isa)
    }

    /// Where panel `p` lies.
    pub(super) fn panel(&self, p: usize) -> *const u8 {
        self.data.as_ptr().wrapping_add(p * self.k / BLOCK * self.width() * self.kind.bytes())
    }
}
