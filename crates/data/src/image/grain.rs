//! A picture to time decoders with.

use super::{error::PictureError, picture::RgbImage};

/// Smooth colours with fine grain, which compress about as a photograph does; the same for the same size.
///
/// # Errors
/// When a side is 0.
pub fn grained(width: usize, height: usize) -> Result<RgbImage, PictureError> {
    let mut noise = 1_u32;
    let mut bytes = Vec::with_capacity(width.saturating_mul(height).saturating_mul(3));
    for y in 0..height {
        for x in 0..width {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let grain = (noise >> 28) as u8;
            let wave = ((x as f32 / 37.0).sin() * (y as f32 / 53.0).cos() * 90.0 + 110.0) as u8;
            let slope = (x * 200 / width) as u8;
            bytes.extend([wave + grain, wave / 2 + grain, slope + grain]);
        }
    }
    RgbImage::new(width, height, bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::super::{Limits, decode, encode_jpeg};
    use super::*;

    #[test]
    fn it_comes_back_from_a_jpeg_of_the_size_of_a_photograph() {
        let picture = grained(320, 240).unwrap();
        let jpeg = encode_jpeg(&picture, 90).unwrap();
        // Photographs have 2 to 5 bits a pixel at such qualities.
        let bits = 8.0 * jpeg.len() as f64 / (320.0 * 240.0);
        assert!((2.0..5.0).contains(&bits), "{bits}");
        let back = decode(&jpeg, &Limits::default()).unwrap().to_rgb();
        let differences = picture.bytes().iter().zip(back.bytes()).map(|(a, b)| a.abs_diff(*b));
        let mean = differences.map(f64::from).sum::<f64>() / picture.bytes().len() as f64;
        assert!(mean > 0.0 && mean < 5.0, "{mean}");
        assert!(grained(0, 9).is_err() && encode_jpeg(&grained(1 << 16, 1).unwrap(), 90).is_err());
    }
}
