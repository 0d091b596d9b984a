//! Palettes of BMP: 1, 4 and 8 bits a pixel, plain or run-length coded, top row last or first.
//!
//! Pillow keeps them as indices, which decides how they are resized; the `image` crate gives colours
//! for all but plain bytes. Source: "Bitmap Storage" and "Bitmap Compression" of the Win32 reference.

use super::{
    decode::{Format, Limits, indexed},
    error::PictureError,
    picture::{Picture, Pixels},
};

/// Bytes before the header that states the sizes.
const FILE_HEADER: usize = 14;
/// Length of the oldest header: sides of 16 bits, colours of three bytes.
const CORE_HEADER: usize = 12;

/// What the header says of the pixels.
struct Header {
    width: usize,
    height: usize,
    top_down: bool,
    bits: usize,
    coding: Coding,
    colors: Vec<[u8; 3]>,
    data_offset: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    RunLength,
}

/// The picture if its pixels are indices into a palette; `None` if they are colours.
pub(super) fn palette(bytes: &[u8], limits: &Limits) -> Result<Option<Picture>, PictureError> {
    let Some(header) = Header::read(bytes)? else { return Ok(None) };
    let (width, height) = (header.width, header.height);
    limits.check(Format::Bmp, width, height)?;
    if width == 0 || height == 0 {
        return Err(PictureError::NoPixels { width, height });
    }
    let data = bytes.get(header.data_offset..).ok_or_else(short)?;
    let mut indices = match header.coding {
        Coding::Plain => plain(data, &header)?,
        Coding::RunLength => run_length(data, &header)?,
    };
    if !header.top_down {
        indices = indices.rchunks_exact(width).flatten().copied().collect();
    }
    let is_two_level = header.colors == [[0; 3], [255; 3]];
    let pixels = if is_two_level {
        Pixels::Palette { indices, colors: header.colors }
    } else {
        indexed(indices, header.colors)
    };
    Picture::new(width, height, pixels).map(Some)
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Option<Self>, PictureError> {
        let at = |offset: usize| FILE_HEADER + offset;
        let half = |offset: usize| {
            let bytes = bytes.get(at(offset)..)?.first_chunk()?;
            Some(u16::from_le_bytes(*bytes))
        };
        let word = |offset: usize| {
            let bytes = bytes.get(at(offset)..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let length = word(0).ok_or_else(short)? as usize;
        let is_core = length == CORE_HEADER;
        let bits = half(if is_core { 10 } else { 14 }).ok_or_else(short)?;
        if !matches!(bits, 1 | 4 | 8) {
            return Ok(None);
        }
        let compression = if is_core { 0 } else { word(16).ok_or_else(short)? };
        let coding = match (compression, bits) {
            (0, _) => Coding::Plain,
            (1, 8) | (2, 4) => Coding::RunLength,
            _ => {
                let variant = format!("compression {compression} of {bits} bits");
                return Err(PictureError::Unsupported { format: Format::Bmp, variant });
            }
        };
        let (width, height, used) = if is_core {
            let side = |offset| half(offset).map(i32::from).ok_or_else(short);
            (side(4)?, side(6)?, 0)
        } else {
            let side = |offset| word(offset).map(u32::cast_signed).ok_or_else(short);
            (side(4)?, side(8)?, word(32).ok_or_else(short)?)
        };
        let width = usize::try_from(width).map_err(|_| malformed("the width is negative"))?;
        let most = 1_usize << bits;
        let used = if used == 0 { most } else { most.min(used as usize) };
        let each = if is_core { 3 } else { 4 };
        let colors = FILE_HEADER
            .checked_add(length)
            .and_then(|start| bytes.get(start..start.checked_add(used * each)?))
            .ok_or_else(short)?
            .chunks_exact(each)
            .map(|color| [color[2], color[1], color[0]])
            .collect();
        let offset = bytes.get(10..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
        Ok(Some(Self {
            width,
            height: height.unsigned_abs() as usize,
            top_down: height < 0,
            bits: usize::from(bits),
            coding,
            colors,
            data_offset: u32::from_le_bytes(*offset) as usize,
        }))
    }
}

/// Rows of whole words of 32 bits, the first pixel in the highest bits of a byte.
fn plain(data: &[u8], header: &Header) -> Result<Vec<u8>, PictureError> {
    let Header { width, height, bits, .. } = *header;
    let stride = (width * bits).div_ceil(32) * 4;
    let data = stride.checked_mul(height).and_then(|size| data.get(..size)).ok_or_else(short)?;
    let (per_byte, mask) = (8 / bits, (0xFF_u16 >> (8 - bits)) as u8);
    let value =
        move |row: &[u8], x: usize| (row[x / per_byte] >> (8 - bits * (x % per_byte + 1))) & mask;
    Ok(data.chunks_exact(stride).flat_map(|row| (0..width).map(move |x| value(row, x))).collect())
}

/// Runs, literals, jumps and ends of lines. What is jumped over has index 0; a run ends with its row.
fn run_length(data: &[u8], header: &Header) -> Result<Vec<u8>, PictureError> {
    let Header { width, height, bits, .. } = *header;
    let mut indices = vec![0; width * height];
    let mut data = data.iter().copied();
    let mut next = || data.next().ok_or_else(short);
    let nibble = |byte: u8, i: usize| match (bits, i % 2) {
        (8, _) => byte,
        (_, 0) => byte >> 4,
        _ => byte & 15,
    };
    let (mut x, mut y) = (0, 0);
    while y + 1 < height || (y + 1 == height && x < width) {
        let mut put = |value: u8| {
            if x < width {
                indices[y * width + x] = value;
                x += 1;
            }
        };
        match (next()?, next()?) {
            (0, 0) => (x, y) = (0, y + 1),
            (0, 1) => break,
            (0, 2) => {
                let (right, down) = (usize::from(next()?), usize::from(next()?));
                (x, y) = ((x + right).min(width), y + down);
            }
            (0, count) => {
                let count = usize::from(count);
                let bytes = (count * bits).div_ceil(8);
                for byte in 0..bytes {
                    let value = next()?;
                    let here = if bits == 8 { 1 } else { (count - 2 * byte).min(2) };
                    (0..here).for_each(|i| put(nibble(value, i)));
                }
                if bytes % 2 == 1 {
                    next()?;
                }
            }
            (count, value) => (0..usize::from(count)).for_each(|i| put(nibble(value, i))),
        }
    }
    Ok(indices)
}

fn malformed(reason: &str) -> PictureError {
    PictureError::Malformed { format: Format::Bmp, reason: reason.to_owned() }
}

fn short() -> PictureError {
    malformed("the file ends early")
}
