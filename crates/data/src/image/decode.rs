//! From bytes to a picture: format by content, limits before any allocation.

use std::{fmt, io::Read, path::Path};

use super::{
    error::PictureError,
    gif,
    guard::guarded,
    jpeg,
    picture::{Picture, Pixels},
    png, raster, svg,
};
use crate::Error;

/// Endings of the names of picture files, in lower case.
pub const ENDINGS: [&str; 10] =
    ["jpg", "jpeg", "png", "webp", "svg", "gif", "bmp", "tif", "tiff", "jfif"];

/// What a picture may cost.
///
/// Besides the file, the costliest kinds (progressive JPEG, 16-bit PNG) hold some 12 bytes a pixel while
/// they decode. An SVG also takes a canvas for each group within a group that is translucent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width times height as the header declares them. Default 40 million.
    pub max_pixels: u64,
    /// Length of the file. Default 256 MiB.
    pub max_bytes: u64,
    /// Pixels of the shorter side that are enough. A JPEG is then decoded at a half, a quarter or an
    /// eighth of its size, though not below: quicker, and close to what a filter makes of the whole.
    /// Default none: all of it.
    pub enough: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 40_000_000, max_bytes: 256 << 20, enough: None }
    }
}

impl Limits {
    /// Whether a declared size is allowed.
    pub(super) fn check(
        &self,
        format: Format,
        width: impl TryInto<u64>,
        height: impl TryInto<u64>,
    ) -> Result<(), PictureError> {
        let width = width.try_into().unwrap_or(u64::MAX);
        let height = height.try_into().unwrap_or(u64::MAX);
        if width.saturating_mul(height) > self.max_pixels {
            let limit = self.max_pixels;
            return Err(PictureError::TooManyPixels { format, width, height, limit });
        }
        Ok(())
    }

    /// What a decoder may allocate: 16 bits for each of four channels.
    pub(super) fn decoder_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8)
    }
}

/// A file format, known by the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Baseline and progressive; grey, colour and four inks.
    Jpeg,
    /// Every colour type and depth.
    Png,
    /// Lossy and lossless; the first frame.
    WebP,
    /// The first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// The first page.
    Tiff,
    /// Drawn without text.
    Svg,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Svg => "SVG",
        })
    }
}

impl Format {
    /// The format of a file by its first bytes; its name plays no part.
    ///
    /// # Errors
    /// When there are no bytes or they begin like none of the formats.
    pub fn of(bytes: &[u8]) -> Result<Self, PictureError> {
        if bytes.is_empty() {
            return Err(PictureError::Empty);
        }
        Ok(match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Self::Png,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'B', b'M', ..] if bytes.len() > 26 => Self::Bmp,
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Self::Tiff,
            _ if svg::is_svg(bytes) => Self::Svg,
            _ => {
                let start = &bytes[..bytes.len().min(16)];
                return Err(PictureError::UnknownFormat {
                    start: String::from_utf8_lossy(start).into_owned(),
                });
            }
        })
    }
}

/// Decodes a picture held in memory. The EXIF orientation is noted, not applied: see
/// [`Picture::upright`]. An SVG is drawn on white with its longer side at 512 pixels.
///
/// # Errors
/// When the bytes are no picture, are broken or truncated, or exceed `limits`.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let length = bytes.len() as u64;
    if length > limits.max_bytes {
        return Err(PictureError::TooManyBytes { bytes: length, limit: limits.max_bytes });
    }
    let format = Format::of(bytes)?;
    let decoded = guarded(|| match format {
        Format::Jpeg => jpeg::decode(bytes, limits),
        Format::Png => png::decode(bytes, limits),
        Format::Gif => gif::decode(bytes, limits),
        Format::WebP => raster::webp(bytes, limits),
        Format::Bmp => raster::bmp(bytes, limits),
        Format::Tiff => raster::tiff(bytes, limits),
        Format::Svg => svg::decode(bytes, limits),
    });
    decoded.unwrap_or_else(|| {
        let reason = "the decoder gave up on it".to_owned();
        Err(PictureError::Malformed { format, reason })
    })
}

/// Reads and decodes a picture file; see [`decode`].
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Picture`] with its path when it is no sound
/// picture within `limits`.
pub fn open(path: impl AsRef<Path>, limits: &Limits) -> Result<Picture, Error> {
    let path = path.as_ref();
    let bytes = read(path, limits)?;
    decode(&bytes, limits).map_err(|source| Error::Picture { path: path.to_path_buf(), source })
}

/// The bytes of a picture file, unless they are too many.
pub(super) fn read(path: &Path, limits: &Limits) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let too_many = |bytes| {
        let source = PictureError::TooManyBytes { bytes, limit: limits.max_bytes };
        Error::Picture { path: path.to_path_buf(), source }
    };
    let file = std::fs::File::open(path).map_err(io)?;
    let declared = file.metadata().map_err(io)?.len();
    if declared > limits.max_bytes {
        return Err(too_many(declared));
    }
    let mut bytes = Vec::with_capacity(declared as usize);
    // A pipe has no length: one byte past the limit is enough to refuse it.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(too_many(bytes.len() as u64));
    }
    Ok(bytes)
}

/// A palette picture, or a grey one if the palette says so: Pillow reads files this way, and it
/// decides how they are resized.
pub(super) fn indexed(indices: Vec<u8>, colors: Vec<[u8; 3]>) -> Pixels {
    let grey =
        colors.iter().enumerate().all(|(i, color)| color.iter().all(|&v| usize::from(v) == i));
    if grey { Pixels::Gray(indices) } else { Pixels::Palette { indices, colors } }
}

/// Splits a flat palette into colours.
pub(super) fn colors(flat: &[u8]) -> Vec<[u8; 3]> {
    flat.chunks_exact(3).map(|color| [color[0], color[1], color[2]]).collect()
}
