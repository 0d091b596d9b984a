//! PNG of every colour type and depth, in Pillow's modes: 16-bit colour keeps the high byte, 16-bit
//! grey is clipped to 255, two-level grey is a palette, `tRNS` is ignored.

use std::io::Cursor;

use ::png::{BitDepth, ColorType, Transformations};

use super::{
    decode::{Format, Limits, colors},
    error::PictureError,
    picture::{Orientation, Picture, Pixels, RgbImage},
};

/// A picture as a PNG file.
///
/// # Errors
/// If a side is too large for the format.
pub fn encode(picture: &RgbImage) -> Result<Vec<u8>, PictureError> {
    let (width, height) = (picture.width(), picture.height());
    let unfit = |reason: &dyn std::fmt::Display| PictureError::Unwritten {
        format: Format::Png,
        width,
        height,
        reason: reason.to_string(),
    };
    let side = |side: usize| u32::try_from(side).map_err(|e| unfit(&e));
    let mut out = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut out, side(width)?, side(height)?);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|e| unfit(&e))?;
    writer.write_image_data(picture.bytes()).map_err(|e| unfit(&e))?;
    writer.finish().map_err(|e| unfit(&e))?;
    Ok(out)
}

/// Decodes one PNG (of an animation, the default picture).
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let memory = usize::try_from(limits.decoder_bytes()).unwrap_or(usize::MAX);
    let mut decoder =
        ::png::Decoder::new_with_limits(Cursor::new(bytes), ::png::Limits { bytes: memory });
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.ignore_checksums(false);
    let header = decoder.read_header_info().map_err(|e| malformed(&e))?;
    limits.check(Format::Png, header.width, header.height)?;

    let mut reader = decoder.read_info().map_err(|e| malformed(&e))?;
    let size = reader.output_buffer_size().ok_or_else(|| malformed(&"size overflows"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(|e| malformed(&e))?;
    data.truncate(frame.buffer_size());
    let (width, height) = (frame.width as usize, frame.height as usize);

    let depth = frame.bit_depth;
    let wide = depth == BitDepth::Sixteen;
    let narrow = |data: Vec<u8>| if wide { high_bytes(&data) } else { data };
    let pixels = match frame.color_type {
        ColorType::Rgb => Pixels::Rgb(narrow(data)),
        ColorType::Rgba => Pixels::Rgba(narrow(data)),
        ColorType::GrayscaleAlpha => Pixels::GrayAlpha(narrow(data)),
        ColorType::Grayscale if wide => {
            Pixels::Gray(data.chunks_exact(2).map(|v| if v[0] > 0 { 255 } else { v[1] }).collect())
        }
        ColorType::Grayscale => {
            let values = unpack(data, depth, width, frame.line_size);
            match depth {
                BitDepth::One => {
                    Pixels::Palette { indices: values, colors: vec![[0; 3], [255; 3]] }
                }
                BitDepth::Two => Pixels::Gray(values.into_iter().map(|v| v * 85).collect()),
                BitDepth::Four => Pixels::Gray(values.into_iter().map(|v| v * 17).collect()),
                _ => Pixels::Gray(values),
            }
        }
        ColorType::Indexed => Pixels::Palette {
            indices: unpack(data, depth, width, frame.line_size),
            colors: colors(reader.info().palette.as_deref().unwrap_or_default()),
        },
    };
    let orientation = reader.info().exif_metadata.as_deref().and_then(Orientation::from_exif_chunk);
    let picture = Picture::new(width, height, pixels)?;
    Ok(picture.oriented(orientation.unwrap_or(Orientation::NoTransforms)))
}

fn malformed(error: &dyn std::fmt::Display) -> PictureError {
    PictureError::Malformed { format: Format::Png, reason: error.to_string() }
}

fn high_bytes(data: &[u8]) -> Vec<u8> {
    data.chunks_exact(2).map(|value| value[0]).collect()
}

/// One byte for each value of fewer than 8 bits; rows start at a byte.
fn unpack(data: Vec<u8>, depth: BitDepth, width: usize, line: usize) -> Vec<u8> {
    let bits = match depth {
        BitDepth::One => 1,
        BitDepth::Two => 2,
        BitDepth::Four => 4,
        _ => return data,
    };
    let per_byte = 8 / bits;
    let mask = (1_u8 << bits) - 1;
    data.chunks_exact(line)
        .flat_map(|row| {
            (0..width).map(move |x| (row[x / per_byte] >> (8 - bits * (x % per_byte + 1))) & mask)
        })
        .collect()
}
