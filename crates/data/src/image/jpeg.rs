//! JPEG through `zune-jpeg`.
//!
//! Differs from Pillow 13 (libjpeg-turbo) by 0.01 (4:4:4) to 0.24 (4:2:0) of 255 on average and 4 at most:
//! `docs/pictures.md` has the pictures. Smooth chroma upsampling is on in both.

use ::zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::{
    decode::{Format, Limits},
    error::PictureError,
    picture::{Orientation, Picture, Pixels},
};

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
