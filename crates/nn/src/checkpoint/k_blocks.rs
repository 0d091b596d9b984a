//! The formats of GGUF files whose blocks of 256 values have blocks of their own: 4 and 5 bits with
//! eight scales and lowest values, 6 bits with sixteen scales. They are only ever unpacked.

use ocelli_tensor::half_to_f32;

/// Values of a block.
pub(super) const LEN: usize = 256;
/// Bytes of a block of 4, 5 and 6 bits.
pub(super) const BYTES: [usize; 3] = [144, 176, 210];

fn half(bytes: &[u8]) -> f32 {
    half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Scale and lowest value `i` of 8, which share 12 bytes, 6 bits each.
fn scale_and_lowest(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, lowest) = if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let high = |at: usize| packed[at] >> 6 << 4;
        (packed[i + 4] & 15 | high(i - 4), packed[i + 4] >> 4 | high(i))
    };
    (f32::from(scale), f32::from(lowest))
}

/// Appends the values of a block of 4 or, with `fifth` bits, 5 bits.
fn unpack_4_5(block: &[u8], fifth: Option<&[u8]>, codes: &[u8], out: &mut Vec<f32>) {
    let (scale, lowest, packed) = (half(block), half(&block[2..]), &block[4..16]);
    for (pair, codes) in codes.chunks_exact(32).enumerate() {
        for high in 0..2 {
            let i = 2 * pair + high;
            let (own_scale, own_lowest) = scale_and_lowest(packed, i);
            let (step, below) = (scale * own_scale, lowest * own_lowest);
            out.extend(codes.iter().enumerate().map(|(at, byte)| {
                let code = if high == 0 { byte & 15 } else { byte >> 4 };
                let more = fifth.map_or(0, |bits| (bits[at] >> i & 1) << 4);
                step * f32::from(code + more) - below
            }));
        }
    }
}

/// Appends the values of a block of 4 bits.
pub(super) fn unpack_4(block: &[u8], out: &mut Vec<f32>) {
    unpack_4_5(block, None, &block[16..], out);
}

/// Appends the values of a block of 5 bits.
pub(super) fn unpack_5(block: &[u8], out: &mut Vec<f32>) {
    unpack_4_5(block, Some(&block[16..48]), &block[48..], out);
}

/// Appends the values of a block of 6 bits.
pub(super) fn unpack_6(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(&block[208..]);
    for i in 0..LEN {
        // Halves of 128 values, each of four runs of 32 that share bytes.
        let (part, run, at) = (i / 128, i % 128 / 32, i % 32);
        let byte = low[part * 64 + run % 2 * 32 + at];
        let four = if run < 2 { byte & 15 } else { byte >> 4 };
        let two = high[part * 32 + at] >> (2 * run) & 3;
        let code = i16::from(four | two << 4) - 32;
        let own_scale = f32::from(scales[i / 16].cast_signed());
        out.push(scale * own_scale * f32::from(code));
    }
}
