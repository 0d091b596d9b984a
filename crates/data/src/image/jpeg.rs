//! JPEG through `zune-jpeg`.
//!
//! Differs from Pillow 13 (libjpeg-turbo) by 0.01 (4:4:4) to 0.24 (4:2:0) of 255 on average and 4 at most:
//! `docs/pictures.md` has the pictures. Smooth chroma upsampling is on in both.

use ::image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use ::zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::{
    decode::{Format, Limits},
    error::PictureError,
    picture::{Orientation, Picture, Pixels, RgbImage},
};

/// A picture as a baseline JPEG file of a quality from 1 to 100, its colours at the full resolution.
///
/// # Errors
/// If a side has no pixels or is too large for the format.
pub fn encode(picture: &RgbImage, quality: u8) -> Result<Vec<u8>, PictureError> {
    let (width, height) = (picture.width(), picture.height());
    let unfit = |reason: &dyn std::fmt::Display| PictureError::Unwritten {
        format: Format::Jpeg,
        width,
        height,
        reason: reason.to_string(),
    };
    let side = |side: usize| u16::try_from(side).map(u32::from).map_err(|e| unfit(&e));
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, quality)
        .encode(picture.bytes(), side(width)?, side(height)?, ExtendedColorType::Rgb8)
        .map_err(|e| unfit(&e))?;
    Ok(out)
}

/// Decodes one JPEG.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| malformed(&e))?;
    let (width, height) =
        decoder.dimensions().expect("the headers were decoded on the line before");
    limits.check(Format::Jpeg, width, height)?;

    let input = decoder.input_colorspace().expect("the headers were decoded above");
    let output = match input {
        ColorSpace::Luma | ColorSpace::CMYK | ColorSpace::YCCK => input,
        _ => ColorSpace::RGB,
    };
    if let Some(enough) = limits.enough
        && [ColorSpace::Luma, ColorSpace::YCbCr].contains(&input)
        && let Some(part) = decode_part(bytes, (width, height), enough)
    {
        let orientation = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));
        return Ok(part.oriented(orientation.unwrap_or(Orientation::NoTransforms)));
    }
    let options = decoder.options().jpeg_set_out_colorspace(output);
    decoder.set_options(options);
    let mut pixels = decoder.decode().map_err(|e| malformed(&e))?;
    let orientation = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));

    let pixels = match output {
        ColorSpace::Luma => Pixels::Gray(pixels),
        ColorSpace::CMYK => {
            // Files with four channels come from Adobe software, which stores ink inverted.
            for v in &mut pixels {
                *v = 255 - *v;
            }
            Pixels::Cmyk(pixels)
        }
        ColorSpace::YCCK => {
            pixels.chunks_exact_mut(4).for_each(ycck_to_cmyk);
            Pixels::Cmyk(pixels)
        }
        _ => Pixels::Rgb(pixels),
    };
    let picture = Picture::new(width, height, pixels)?;
    Ok(picture.oriented(orientation.unwrap_or(Orientation::NoTransforms)))
}

/// The picture at the least of an eighth, a quarter and a half of its `size` whose shorter side still
/// has `enough` pixels, by `jpeg-decoder`, which makes fewer pixels of each block; `None` if that is
/// too few or the file is one that it does not read.
fn decode_part(bytes: &[u8], size: (usize, usize), enough: usize) -> Option<Picture> {
    let part = [8, 4, 2].into_iter().find(|part| size.0.min(size.1) / part >= enough.max(1))?;
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    let side = |side: usize| u16::try_from(side.div_ceil(part)).ok();
    let (width, height) = decoder.scale(side(size.0)?, side(size.1)?).ok()?;
    let bytes = decoder.decode().ok()?;
    let pixels = match decoder.info()?.pixel_format {
        jpeg_decoder::PixelFormat::L8 => Pixels::Gray(bytes),
        jpeg_decoder::PixelFormat::RGB24 => Pixels::Rgb(bytes),
        _ => return None,
    };
    let picture = Picture::new(width.into(), height.into(), pixels).ok()?;
    Some(picture.reduced_from(size))
}

fn malformed(error: &DecodeErrors) -> PictureError {
    PictureError::Malformed { format: Format::Jpeg, reason: format!("{error:?}") }
}

/// YCC holds inverted ink as if it were RGB; black is inverted too.
fn ycck_to_cmyk(pixel: &mut [u8]) {
    const HALF: i32 = 1 << 15;
    let [y, cb, cr, k] = [pixel[0], pixel[1], pixel[2], pixel[3]].map(i32::from);
    let (cb, cr) = (cb - 128, cr - 128);
    // The factors of JFIF in 16-bit fixed point.
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    for (to, value) in pixel.iter_mut().zip([red, green, blue, 255 - k]) {
        *to = value.clamp(0, 255) as u8;
    }
}
