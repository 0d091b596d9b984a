//! Pictures on their way to training: decoded once, small, kept in memory as bytes.

use crate::image::{
    Filter, Format, Limits, Picture, PictureError, Pixels, Window, decode, render_transparent,
    resize,
};

/// Longer side in pixels of an SVG when pictures are not made small.
const DRAWN_SIDE: usize = 512;

/// A decoded picture: RGB, or RGBA with colours multiplied by alpha. Outside an RGBA picture there is
/// nothing, outside an RGB picture its border goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Small {
    width: usize,
    height: usize,
    has_alpha: bool,
    bytes: Box<[u8]>,
}

impl Small {
    /// Premultiplied RGBA of `width` x `height` pixels.
    pub(super) fn transparent(width: usize, height: usize, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(bytes.len(), width * height * 4);
        Self { width, height, has_alpha: true, bytes: bytes.into_boxed_slice() }
    }

    /// Decodes a picture file. With `side` the longer side is at most that: drawings are drawn at it,
    /// other pictures are shrunk to it if they are larger.
    pub(super) fn decode(bytes: &[u8], side: Option<usize>) -> Result<Self, PictureError> {
        if Format::of(bytes)? == Format::Svg {
            let side = side.unwrap_or(DRAWN_SIDE);
            let (width, height, bytes) = render_transparent(bytes, side)?;
            return Ok(Self::transparent(width, height, bytes));
        }
        let picture = decode(bytes, &Limits::default())?;
        let small = Self::from_picture(&picture);
        let longer = small.width.max(small.height);
        match side {
            Some(side) if side < longer => Ok(small.shrink(side as f64 / longer as f64)),
            _ => Ok(small),
        }
    }

    fn from_picture(picture: &Picture) -> Self {
        let (width, height) = (picture.width(), picture.height());
        let multiply =
            |value: u8, alpha: u8| ((u32::from(value) * u32::from(alpha) + 127) / 255) as u8;
        let (has_alpha, bytes): (_, Vec<u8>) = match picture.pixels() {
            Pixels::Rgba(bytes) => {
                let pixels = bytes.as_chunks::<4>().0.iter();
                let pixels = pixels.flat_map(|&[red, green, blue, alpha]| {
                    let [red, green, blue] = [red, green, blue].map(|v| multiply(v, alpha));
                    [red, green, blue, alpha]
                });
                (true, pixels.collect())
            }
            Pixels::GrayAlpha(bytes) => {
                let pixels = bytes.as_chunks::<2>().0.iter();
                let pixels = pixels.flat_map(|&[grey, alpha]| {
                    let grey = multiply(grey, alpha);
                    [grey, grey, grey, alpha]
                });
                (true, pixels.collect())
            }
            _ => (false, picture.to_rgb().into_bytes()),
        };
        Self { width, height, has_alpha, bytes: bytes.into_boxed_slice() }
    }

    fn shrink(&self, scale: f64) -> Self {
        let length = |length: usize| ((length as f64 * scale).round() as usize).max(1);
        let (width, height) = (length(self.width), length(self.height));
        let (from, size) = ((self.width, self.height), (width, height));
        let all = Window::all(width, height);
        let bytes = resize(&self.bytes, from, self.channels(), size, Filter::Bicubic, &all);
        Self { width, height, has_alpha: self.has_alpha, bytes: bytes.into_boxed_slice() }
    }

    /// In pixels.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// In pixels.
    pub(super) fn height(&self) -> usize {
        self.height
    }

    /// 4 with alpha, 3 without.
    pub(super) fn channels(&self) -> usize {
        if self.has_alpha { 4 } else { 3 }
    }

    /// `[height, width, channels]`.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
