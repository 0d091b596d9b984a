//! A decoded picture in the mode of its file, and the RGB picture made from it.
//!
//! The mode matters because the `OpenAI` order resizes before it converts to RGB: palettes are then
//! resized by nearest neighbour and alpha is premultiplied. Conversions are Pillow's.

use std::borrow::Cow;

use super::error::PictureError;

pub use ::image::metadata::Orientation;

/// The channels of a picture, interleaved and row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pixels {
    /// One byte a pixel. Grey of 16 bits is clipped to 255, which is what Pillow's conversion does.
    Gray(Vec<u8>),
    /// Grey and alpha.
    GrayAlpha(Vec<u8>),
    /// Red, green, blue.
    Rgb(Vec<u8>),
    /// Red, green, blue and straight alpha.
    Rgba(Vec<u8>),
    /// Cyan, magenta, yellow, black; 255 is full ink.
    Cmyk(Vec<u8>),
    /// An index a pixel into a palette. Two-level pictures are read as this, black and white.
    Palette {
        /// One a pixel.
        indices: Vec<u8>,
        /// Red, green, blue. An index past the end is black.
        colors: Vec<[u8; 3]>,
    },
}

impl Pixels {
    /// Number of bytes a pixel takes.
    pub fn channels(&self) -> usize {
        match self {
            Self::Gray(_) | Self::Palette { .. } => 1,
            Self::GrayAlpha(_) => 2,
            Self::Rgb(_) => 3,
            Self::Rgba(_) | Self::Cmyk(_) => 4,
        }
    }

    /// The interleaved bytes (the indices of a palette).
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Gray(bytes)
            | Self::GrayAlpha(bytes)
            | Self::Rgb(bytes)
            | Self::Rgba(bytes)
            | Self::Cmyk(bytes)
            | Self::Palette { indices: bytes, .. } => bytes,
        }
    }

    /// The same mode with other bytes.
    pub(super) fn with_bytes(&self, bytes: Vec<u8>) -> Self {
        match self {
            Self::Gray(_) => Self::Gray(bytes),
            Self::GrayAlpha(_) => Self::GrayAlpha(bytes),
            Self::Rgb(_) => Self::Rgb(bytes),
            Self::Rgba(_) => Self::Rgba(bytes),
            Self::Cmyk(_) => Self::Cmyk(bytes),
            Self::Palette { colors, .. } => {
                Self::Palette { indices: bytes, colors: colors.clone() }
            }
        }
    }

    /// RGB bytes as Pillow converts them: grey replicated, alpha dropped, ink over white.
    pub(super) fn to_rgb(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Rgb(bytes) => Cow::Borrowed(bytes),
            Self::Gray(bytes) => bytes.iter().flat_map(|&v| [v; 3]).collect(),
            Self::GrayAlpha(bytes) => bytes.chunks_exact(2).flat_map(|v| [v[0]; 3]).collect(),
            Self::Rgba(bytes) => bytes.chunks_exact(4).flat_map(|v| [v[0], v[1], v[2]]).collect(),
            Self::Cmyk(bytes) => bytes
                .chunks_exact(4)
                .flat_map(|v| {
                    let paper = 255 - v[3];
                    [v[0], v[1], v[2]].map(|ink| paper.saturating_sub(scale_255(ink, paper)))
                })
                .collect(),
            Self::Palette { indices, colors } => indices
                .iter()
                .flat_map(|&i| colors.get(usize::from(i)).copied().unwrap_or_default())
                .collect(),
        }
    }
}

/// `round(a * b / 255)` without a division, exact for bytes.
pub(super) fn scale_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Pixels,
    orientation: Orientation,
    /// Width and height in the file.
    full_size: (usize, usize),
}

impl Picture {
    /// A picture of `width` x `height` pixels.
    ///
    /// # Errors
    /// When a side is 0 or the number of bytes is not `width * height * channels`.
    pub fn new(width: usize, height: usize, pixels: Pixels) -> Result<Self, PictureError> {
        if width == 0 || height == 0 {
            return Err(PictureError::NoPixels { width, height });
        }
        let expected = width.saturating_mul(height).saturating_mul(pixels.channels());
        let got = pixels.bytes().len();
        if expected != got {
            return Err(PictureError::Length { width, height, expected, got });
        }
        let orientation = Orientation::NoTransforms;
        Ok(Self { width, height, pixels, orientation, full_size: (width, height) })
    }

    /// Notes what a picture that was decoded at a part of its size measures in the file.
    pub(super) fn reduced_from(mut self, full_size: (usize, usize)) -> Self {
        self.full_size = full_size;
        self
    }

    /// Width and height in the file, which are more than those of the pixels after a decoding that
    /// [`Limits::enough`](super::Limits::enough) cut short.
    pub fn full_size(&self) -> (usize, usize) {
        self.full_size
    }

    /// Notes how the file asks to be turned; the pixels stay as they are.
    pub(super) fn oriented(mut self, orientation: Orientation) -> Self {
        self.orientation = orientation;
        self
    }

    /// In pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels in the mode of the file.
    pub fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    /// How the file asks to be turned (EXIF); [`Picture::upright`] does it.
    pub fn orientation(&self) -> Orientation {
        self.orientation
    }

    /// The picture turned as its EXIF orientation asks.
    ///
    /// `Image.open` of Pillow, `OpenAI` CLIP, `open_clip` and timm do not turn pictures; `load_image` of
    /// the Hugging Face pipelines does. Decoding leaves the choice to the caller.
    #[must_use]
    pub fn upright(self) -> Self {
        use Orientation as O;
        let (width, height) = (self.width, self.height);
        let swaps = matches!(
            self.orientation,
            O::Rotate90 | O::Rotate270 | O::Rotate90FlipH | O::Rotate270FlipH
        );
        if self.orientation == O::NoTransforms {
            return self;
        }
        let (to_width, to_height) = if swaps { (height, width) } else { (width, height) };
        let channels = self.pixels.channels();
        let from = self.pixels.bytes();
        let mut bytes = Vec::with_capacity(from.len());
        for y in 0..to_height {
            for x in 0..to_width {
                let (sx, sy) = match self.orientation {
                    O::NoTransforms => (x, y),
                    O::FlipHorizontal => (width - 1 - x, y),
                    O::Rotate180 => (width - 1 - x, height - 1 - y),
                    O::FlipVertical => (x, height - 1 - y),
                    O::Rotate90FlipH => (y, x),
                    O::Rotate90 => (y, height - 1 - x),
                    O::Rotate270FlipH => (width - 1 - y, height - 1 - x),
                    O::Rotate270 => (width - 1 - y, x),
                };
                let at = (sy * width + sx) * channels;
                bytes.extend_from_slice(&from[at..at + channels]);
            }
        }
        let pixels = self.pixels.with_bytes(bytes);
        let (full_width, full_height) = self.full_size;
        let full_size = if swaps { (full_height, full_width) } else { self.full_size };
        let orientation = O::NoTransforms;
        Self { width: to_width, height: to_height, pixels, orientation, full_size }
    }

    /// The RGB picture Pillow's `convert("RGB")` gives.
    pub fn to_rgb(&self) -> RgbImage {
        RgbImage {
            width: self.width,
            height: self.height,
            bytes: self.pixels.to_rgb().into_owned(),
        }
    }
}

/// An RGB picture of 8 bits a channel, interleaved, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl RgbImage {
    /// A picture of `width` x `height` pixels from `3 * width * height` bytes.
    ///
    /// # Errors
    /// When a side is 0 or the number of bytes does not fit.
    pub fn new(width: usize, height: usize, bytes: Vec<u8>) -> Result<Self, PictureError> {
        if width == 0 || height == 0 {
            return Err(PictureError::NoPixels { width, height });
        }
        let expected = width.saturating_mul(height).saturating_mul(3);
        if expected != bytes.len() {
            return Err(PictureError::Length { width, height, expected, got: bytes.len() });
        }
        Ok(Self { width, height, bytes })
    }

    /// For callers in this module whose bytes fit by construction.
    pub(super) fn from_parts(width: usize, height: usize, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(width * height * 3, bytes.len());
        Self { width, height, bytes }
    }

    /// In pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// In pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// `[height, width, 3]`.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `[height, width, 3]`, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Self {
        Self {
            width: image.width,
            height: image.height,
            pixels: Pixels::Rgb(image.bytes),
            orientation: Orientation::NoTransforms,
            full_size: (image.width, image.height),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orientations_match_pillow() {
        // 0 1 2
        // 3 4 5, turned by each EXIF value as Pillow's exif_transpose does.
        let cases: [(u8, usize, [u8; 6]); 8] = [
            (1, 3, [0, 1, 2, 3, 4, 5]),
            (2, 3, [2, 1, 0, 5, 4, 3]),
            (3, 3, [5, 4, 3, 2, 1, 0]),
            (4, 3, [3, 4, 5, 0, 1, 2]),
            (5, 2, [0, 3, 1, 4, 2, 5]),
            (6, 2, [3, 0, 4, 1, 5, 2]),
            (7, 2, [5, 2, 4, 1, 3, 0]),
            (8, 2, [2, 5, 1, 4, 0, 3]),
        ];
        for (exif, width, expected) in cases {
            let picture = Picture::new(3, 2, Pixels::Gray((0..6).collect())).expect("fits");
            let orientation = Orientation::from_exif(exif).expect("1 to 8");
            let turned = picture.oriented(orientation).upright();
            assert_eq!((exif, turned.width()), (exif, width));
            assert_eq!((exif, turned.pixels().bytes()), (exif, &expected[..]));
        }
    }

    #[test]
    fn sides_must_fit_the_bytes() {
        assert!(Picture::new(0, 4, Pixels::Gray(vec![])).is_err());
        assert!(Picture::new(2, 2, Pixels::Rgb(vec![0; 11])).is_err());
        assert!(RgbImage::new(usize::MAX, usize::MAX, vec![0; 3]).is_err());
    }
}
