//! Element types of stored tensors and their conversion to the two types that models compute with.

use std::fmt;

use ocelli_tensor::{BLOCK, BlockKind, Blocks, half_to_f32};

use super::k_blocks;

/// The element type of a stored tensor; the bytes are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `F32`.
    Bf16,
    /// IEEE 754 double precision.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// Blocks of 32 values of 8 bits with an f16 scale.
    Q8_0,
    /// Blocks of 32 values of 4 bits with an f16 scale.
    Q4_0,
    /// Blocks of 32 values of 4 bits with an f16 scale and an f16 lowest value.
    Q4_1,
    /// Blocks of 256 values of 4 bits with eight scales and lowest values.
    Q4K,
    /// Blocks of 256 values of 5 bits with eight scales and lowest values.
    Q5K,
    /// Blocks of 256 values of 6 bits with sixteen scales.
    Q6K,
}

impl Dtype {
    /// The size of one element, in bytes; of a block where values come in blocks.
    pub fn size(self) -> usize {
        match self {
            Self::Q4K => k_blocks::BYTES[0],
            Self::Q5K => k_blocks::BYTES[1],
            Self::Q6K => k_blocks::BYTES[2],
            Self::Q8_0 => BlockKind::Q8_0.bytes(),
            Self::Q4_0 => BlockKind::Q4_0.bytes(),
            Self::Q4_1 => BlockKind::Q4_1.bytes(),
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Values in a block; 1 where values stand alone.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => BLOCK,
            Self::Q4K | Self::Q5K | Self::Q6K => k_blocks::LEN,
            _ => 1,
        }
    }

    /// The kind of blocks that kernels read as they are.
    pub(crate) fn block_kind(self) -> Option<BlockKind> {
        match self {
            Self::Q8_0 => Some(BlockKind::Q8_0),
            Self::Q4_0 => Some(BlockKind::Q4_0),
            Self::Q4_1 => Some(BlockKind::Q4_1),
            _ => None,
        }
    }

    /// The lower-case name, such as `"bf16"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::Bool => "bool",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Decodes little-endian `bytes` to f32; exact for f16, bf16 and the integers below 2²⁴.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => decode(bytes, f32::from_le_bytes),
            Self::F16 => decode(bytes, |b| half_to_f32(u16::from_le_bytes(b))),
            Self::Bf16 => decode(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Self::F64 => decode(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::I64 => decode(bytes, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => decode(bytes, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => decode(bytes, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => decode(bytes, |b| f32::from(i8::from_le_bytes(b))),
            Self::U8 => decode(bytes, |[b]| f32::from(b)),
            Self::Bool => decode(bytes, |[b]| f32::from(u8::from(b != 0))),
            Self::Q8_0 => unpack(BlockKind::Q8_0, bytes),
            Self::Q4_0 => unpack(BlockKind::Q4_0, bytes),
            Self::Q4_1 => unpack(BlockKind::Q4_1, bytes),
            Self::Q4K => self.unpack_each(bytes, k_blocks::unpack_4),
            Self::Q5K => self.unpack_each(bytes, k_blocks::unpack_5),
            Self::Q6K => self.unpack_each(bytes, k_blocks::unpack_6),
        }
    }

    fn unpack_each(self, bytes: &[u8], unpack: impl Fn(&[u8], &mut Vec<f32>)) -> Vec<f32> {
        let blocks = bytes.chunks_exact(self.size());
        let mut values = Vec::with_capacity(blocks.len() * self.block_len());
        blocks.for_each(|block| unpack(block, &mut values));
        values
    }

    /// Decodes little-endian `bytes` to i64; `None` for a floating-point type.
    pub(super) fn to_i64(self, bytes: &[u8]) -> Option<Vec<i64>> {
        Some(match self {
            Self::F32
            | Self::F16
            | Self::Bf16
            | Self::F64
            | Self::Q8_0
            | Self::Q4_0
            | Self::Q4_1
            | Self::Q4K
            | Self::Q5K
            | Self::Q6K => return None,
            Self::I64 => decode(bytes, i64::from_le_bytes),
            Self::I32 => decode(bytes, |b| i64::from(i32::from_le_bytes(b))),
            Self::I16 => decode(bytes, |b| i64::from(i16::from_le_bytes(b))),
            Self::I8 => decode(bytes, |b| i64::from(i8::from_le_bytes(b))),
            Self::U8 => decode(bytes, |[b]| i64::from(b)),
            Self::Bool => decode(bytes, |[b]| i64::from(b != 0)),
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn decode<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| from(chunk)).collect()
}

fn unpack(kind: BlockKind, bytes: &[u8]) -> Vec<f32> {
    // One long row is as good as many.
    let cols = bytes.len() / kind.bytes() * BLOCK;
    Blocks::new(kind, 1, cols, bytes).map(|blocks| blocks.values()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_decodes() {
        assert_eq!(Dtype::Bf16.to_f32(&[0x80, 0x3f, 0x00, 0xc0]), [1.0, -2.0]);
        assert_eq!(Dtype::F64.to_f32(&1.5f64.to_le_bytes()), [1.5]);
        assert_eq!(Dtype::I8.to_f32(&[0xff, 2]), [-1.0, 2.0]);
        assert_eq!(Dtype::Bool.to_i64(&[0, 1, 7]), Some(vec![0, 1, 1]));
        assert_eq!(Dtype::I16.to_i64(&[0xfe, 0xff]), Some(vec![-2]));
        assert_eq!(Dtype::F32.to_i64(&[0; 4]), None);
    }
}
