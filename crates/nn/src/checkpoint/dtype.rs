//! Element types of stored tensors and their conversion to the two types that models compute with.

use std::fmt;

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
}

impl Dtype {
    /// The size of one element, in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
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
        }
    }

    /// Decodes little-endian `bytes` to f32; exact for f16, bf16 and the integers below 2²⁴.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => decode(bytes, f32::from_le_bytes),
            Self::F16 => decode(bytes, |b| f16_to_f32(u16::from_le_bytes(b))),
            Self::Bf16 => decode(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Self::F64 => decode(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::I64 => decode(bytes, |b| i64::from_le_bytes(b) as f32),
            Self::I32 => decode(bytes, |b| i32::from_le_bytes(b) as f32),
            Self::I16 => decode(bytes, |b| f32::from(i16::from_le_bytes(b))),
            Self::I8 => decode(bytes, |b| f32::from(i8::from_le_bytes(b))),
            Self::U8 => decode(bytes, |[b]| f32::from(b)),
            Self::Bool => decode(bytes, |[b]| f32::from(u8::from(b != 0))),
        }
    }

    /// Decodes little-endian `bytes` to i64; `None` for a floating-point type.
    pub(super) fn to_i64(self, bytes: &[u8]) -> Option<Vec<i64>> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F64 => return None,
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

/// Every half-precision value is a single-precision one, so this is exact.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        0 => {
            // Subnormal: the fraction counts units of 2⁻²⁴.
            let magnitude = fraction as f32 * (-24f32).exp2();
            f32::from_bits(sign | magnitude.to_bits())
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_exact() {
        let cases: [(u16, f32); 9] = [
            (0xfc00, f32::NEG_INFINITY),
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x3555, 0.333_251_95),
        ];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits).to_bits(), value.to_bits(), "{bits:#06x}");
        }
        assert_eq!(f16_to_f32(0x8000).to_bits(), (-0.0f32).to_bits());
        assert!(f16_to_f32(0x7e00).is_nan());
    }

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
