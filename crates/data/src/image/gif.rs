//! The first frame of a GIF, as palette indices.

use std::num::NonZeroU64;

use ::gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::{
    decode::{Format, Limits, colors, indexed},
    error::PictureError,
    picture::Picture,
};

/// Decodes the first frame. What it leaves of the canvas is its transparent index, else index 0.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let memory = NonZeroU64::new(limits.max_pixels).unwrap_or(NonZeroU64::MIN);
    options.set_memory_limit(MemoryLimit::Bytes(memory));
    let mut decoder = options.read_info(bytes).map_err(|e| malformed(&e))?;
    limits.check(Format::Gif, decoder.width(), decoder.height())?;
    let (canvas_width, canvas_height) = (decoder.width(), decoder.height());
    let global = decoder.global_palette().map(colors);

    let info = decoder.next_frame_info().map_err(|e| malformed(&e))?;
    let info = info.ok_or_else(|| malformed(&"there is no frame"))?;
    let (left, top) = (usize::from(info.left), usize::from(info.top));
    let (frame_width, frame_height) = (usize::from(info.width), usize::from(info.height));
    let width = usize::from(canvas_width).max(left + frame_width);
    let height = usize::from(canvas_height).max(top + frame_height);
    limits.check(Format::Gif, width, height)?;
    let background = info.transparent.unwrap_or(0);
    let local = info.palette.as_deref().map(colors);

    let mut frame = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut frame).map_err(|e| malformed(&e))?;
    let indices = if (frame_width, frame_height) == (width, height) {
        frame
    } else {
        let mut canvas = vec![background; width * height];
        if frame_width > 0 {
            for (y, row) in frame.chunks_exact(frame_width).enumerate() {
                let at = (top + y) * width + left;
                canvas[at..at + frame_width].copy_from_slice(row);
            }
        }
        canvas
    };
    Picture::new(width, height, indexed(indices, local.or(global).unwrap_or_default()))
}

pub(super) fn malformed(error: &dyn std::fmt::Display) -> PictureError {
    PictureError::Malformed { format: Format::Gif, reason: error.to_string() }
}
