//! WebP, BMP and TIFF through the `image` crate.

use std::io::Cursor;

use ::image::{
    ColorType, ImageDecoder, ImageError,
    codecs::{bmp::BmpDecoder, tiff::TiffDecoder, webp::WebPDecoder},
    error::UnsupportedErrorKind,
};

use super::{
    bmp,
    decode::{Format, Limits},
    error::PictureError,
    picture::{Orientation, Picture, Pixels},
};

/// Decodes the first frame of a WebP.
pub(super) fn webp(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|e| wrong(Format::WebP, e))?;
    let (picture, orientation) = read(decoder, Format::WebP, limits)?;
    Ok(picture.oriented(orientation))
}

/// Decodes a BMP; a palette stays one.
pub(super) fn bmp(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    if let Some(picture) = bmp::palette(bytes, limits)? {
        return Ok(picture);
    }
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|e| wrong(Format::Bmp, e))?;
    Ok(read(decoder, Format::Bmp, limits)?.0)
}

/// Decodes the first page of a TIFF and turns it upright, as Pillow does for this format alone.
pub(super) fn tiff(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let decoder = TiffDecoder::new(Cursor::new(bytes)).map_err(|e| wrong(Format::Tiff, e))?;
    let (picture, orientation) = read(decoder, Format::Tiff, limits)?;
    Ok(picture.oriented(orientation).upright())
}

fn read(
    mut decoder: impl ImageDecoder,
    format: Format,
    limits: &Limits,
) -> Result<(Picture, Orientation), PictureError> {
    let (width, height) = decoder.dimensions();
    limits.check(format, width, height)?;
    let mut memory = ::image::Limits::no_limits();
    memory.max_alloc = Some(limits.decoder_bytes());
    decoder.set_limits(memory).map_err(|e| wrong(format, e))?;
    // An unreadable orientation does not make the pixels worse.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let color = decoder.color_type();
    let size = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    if size as u64 > limits.decoder_bytes() {
        return Err(PictureError::Unsupported { format, variant: format!("{color:?} pixels") });
    }
    let mut data = vec![0; size];
    decoder.read_image(&mut data).map_err(|e| wrong(format, e))?;
    let pixels = match color {
        ColorType::L8 => Pixels::Gray(data),
        ColorType::La8 => Pixels::GrayAlpha(data),
        ColorType::Rgb8 => Pixels::Rgb(data),
        ColorType::Rgba8 => Pixels::Rgba(data),
        ColorType::L16 => Pixels::Gray(words(&data).map(|v| v.min(255) as u8).collect()),
        ColorType::La16 => Pixels::GrayAlpha(words(&data).map(|v| (v >> 8) as u8).collect()),
        ColorType::Rgb16 => Pixels::Rgb(words(&data).map(|v| (v >> 8) as u8).collect()),
        ColorType::Rgba16 => Pixels::Rgba(words(&data).map(|v| (v >> 8) as u8).collect()),
        _ => {
            return Err(PictureError::Unsupported { format, variant: format!("{color:?} pixels") });
        }
    };
    Ok((Picture::new(width as usize, height as usize, pixels)?, orientation))
}

/// The decoders give 16-bit values in the byte order of the machine.
fn words(data: &[u8]) -> impl Iterator<Item = u16> + '_ {
    data.chunks_exact(2).map(|v| u16::from_ne_bytes([v[0], v[1]]))
}

fn wrong(format: Format, error: ImageError) -> PictureError {
    let ImageError::Unsupported(error) = error else {
        return PictureError::Malformed { format, reason: error.to_string() };
    };
    let variant = match error.kind() {
        UnsupportedErrorKind::Color(color) => format!("{color:?} pixels"),
        UnsupportedErrorKind::GenericFeature(text) => text,
        kind => format!("{kind:?}"),
    };
    PictureError::Unsupported { format, variant }
}
