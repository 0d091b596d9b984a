//! From values to blocks, by the rules of the published files: a block's scale maps its largest value
//! to the end of the codes.

use super::{BLOCK, BlockKind, from_half};
use crate::pool::{Shared, parallel_rows};

/// Values that one task brings into blocks.
const GRAIN: usize = 1 << 13;

/// The nearest blocks of `kind`, on all threads.
///
/// # Panics
/// If the number of values is not one of whole blocks.
pub fn quantise(kind: BlockKind, values: &[f32]) -> Vec<u8> {
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "blocks are whole");
    let mut bytes = vec![0; blocks.len() * kind.bytes()];
    let out = Shared::new(&mut bytes);
    parallel_rows(blocks.len(), BLOCK, GRAIN, |first, count| {
        // SAFETY: each task writes its own blocks.
        let out = unsafe { out.slice(first * kind.bytes(), count * kind.bytes()) };
        let blocks = blocks[first..first + count].iter();
        for (block, out) in blocks.zip(out.chunks_exact_mut(kind.bytes())) {
            encode(kind, block, out);
        }
    });
    bytes
}

fn encode(kind: BlockKind, values: &[f32; BLOCK], out: &mut [u8]) {
    let of_largest = |limit: f32| {
        // The sign stays, so that the end of the codes that reaches further is used.
        let largest = values.iter().fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
        largest / limit
    };
    let over = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (scale, lowest) = match kind {
        BlockKind::Q8_0 => {
            let scale = of_largest(127.0).abs();
            for (code, value) in out[2..].iter_mut().zip(values) {
                *code = ((value * over(scale)).round() as i8).cast_unsigned();
            }
            out[..2].copy_from_slice(&to_half(scale).to_le_bytes());
            return;
        }
        BlockKind::Q4_0 => {
            let scale = of_largest(-8.0);
            (scale, -8.0 * scale)
        }
        BlockKind::Q4_1 => {
            let lowest = values.iter().copied().fold(f32::INFINITY, f32::min);
            let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            ((highest - lowest) / 15.0, lowest)
        }
    };
    let code = |value: f32| ((value - lowest) * over(scale) + 0.5).clamp(0.0, 15.0) as u8;
    out[..2].copy_from_slice(&to_half(scale).to_le_bytes());
    let mut at = 2;
    if kind == BlockKind::Q4_1 {
        out[2..4].copy_from_slice(&to_half(lowest).to_le_bytes());
        at = 4;
    }
    for (j, byte) in out[at..].iter_mut().enumerate() {
        *byte = code(values[j]) | code(values[j + BLOCK / 2]) << 4;
    }
}

/// The bits of the nearest f16, ties to even; what is too large becomes infinite.
fn to_half(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7e00;
    }
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    // The steps of the result at this size; adding and taking away one with just so many digits
    // rounds to them.
    let step = (magnitude.to_bits() >> 23).max(127 - 14);
    let round = f32::from_bits((step + 13) << 23);
    let rounded = (magnitude + round) - round;
    let scaled = rounded * f32::from_bits((127 - 112) << 23);
    let bits = (scaled.to_bits() >> 13) as u16;
    debug_assert_eq!(from_half(bits).to_bits(), rounded.to_bits());
    sign | bits
}

#[cfg(test)]
mod tests {
    use super::super::Blocks;
    use super::*;

    #[test]
    fn halves_round_to_even() {
        for (value, bits) in [
            (1.0, 0x3c00),
            (-2.0, 0xc000),
            (65504.0, 0x7bff),
            (65519.9, 0x7bff),
            (65520.0, 0x7c00),
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (5.960_464_5e-8, 0x0001),
            (2.9e-8, 0x0000),
            (6.097_555e-5, 0x03ff),
        ] {
            assert_eq!(to_half(value), bits, "{value}");
        }
        for bits in 0..0x7c00_u16 {
            assert_eq!(to_half(from_half(bits)), bits);
        }
    }

    #[test]
    fn values_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0) / 16.0).collect();
        for (kind, steps) in
            [(BlockKind::Q8_0, 127.0), (BlockKind::Q4_0, 7.5), (BlockKind::Q4_1, 15.0)]
        {
            let bytes = quantise(kind, &values);
            let blocks = Blocks::new(kind, 2, 32, &bytes).expect("as long as its values");
            for (got, want) in blocks.values().iter().zip(&values) {
                // A scale has eleven digits, and four bits reach one step less far on one side.
                assert!((got - want).abs() <= 4.0 / steps, "{kind:?}: {got} {want}");
            }
            assert_eq!(quantise(kind, &[0.0; 32]).len(), kind.bytes());
        }
    }
}
