//! The frames of a GIF, composed as Pillow composes them.

use std::{fmt, io::Cursor, num::NonZeroU64};

use ::gif::{ColorOutput, DecodeOptions, Decoder, DisposalMethod, MemoryLimit};

use super::{
    decode::{Format, Limits, colors},
    error::PictureError,
    gif::malformed,
    picture::RgbImage,
    video::{Area, Frames, check_frames, of_frame},
};

/// What is known of a GIF without its pixels.
pub(super) struct Survey {
    pub(super) frames: usize,
    /// Of the canvas, with room for every frame.
    width: usize,
    height: usize,
}

/// What happens to a frame before the next one.
enum Disposal {
    Stays,
    Filled(Area, [u8; 3]),
    Restored(Area, Vec<u8>),
}

/// Composes frame after frame.
pub(super) struct GifFrames {
    decoder: Decoder<Cursor<Vec<u8>>>,
    /// `[height, width, 3]`.
    canvas: Vec<u8>,
    width: usize,
    height: usize,
    disposal: Disposal,
    /// What the last frame that said anything about it asked for.
    method: DisposalMethod,
    has_begun: bool,
}

impl fmt::Debug for GifFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GifFrames({}x{})", self.width, self.height)
    }
}

fn options(limits: &Limits) -> DecodeOptions {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let memory = NonZeroU64::new(limits.max_pixels).unwrap_or(NonZeroU64::MIN);
    options.set_memory_limit(MemoryLimit::Bytes(memory));
    options
}

impl GifFrames {
    /// Counts and measures the frames.
    pub(super) fn survey(bytes: &[u8], limits: &Limits) -> Result<Survey, PictureError> {
        let mut options = options(limits);
        options.skip_frame_decoding(true);
        let mut decoder = options.read_info(bytes).map_err(|e| malformed(&e))?;
        let (mut width, mut height) = (usize::from(decoder.width()), usize::from(decoder.height()));
        let mut frames = 0;
        loop {
            // What breaks is the frame that was begun last.
            let wrong = |e| of_frame(frames.max(1) - 1, malformed(&e));
            let Some(info) = decoder.next_frame_info().map_err(wrong)? else { break };
            width = width.max(usize::from(info.left) + usize::from(info.width));
            height = height.max(usize::from(info.top) + usize::from(info.height));
            frames += 1;
            limits.check(Format::Gif, width, height)?;
            check_frames(frames, width, height, limits)?;
        }
        if frames == 0 {
            return Err(malformed(&"there is no frame"));
        }
        Ok(Survey { frames, width, height })
    }

    /// Ready for the first frame.
    pub(super) fn new(
        bytes: Vec<u8>,
        survey: &Survey,
        limits: &Limits,
    ) -> Result<Self, PictureError> {
        let decoder = options(limits).read_info(Cursor::new(bytes)).map_err(|e| malformed(&e))?;
        let &Survey { width, height, .. } = survey;
        Ok(Self {
            decoder,
            canvas: vec![0; 3 * width * height],
            width,
            height,
            disposal: Disposal::Stays,
            method: DisposalMethod::Any,
            has_begun: false,
        })
    }

    fn dispose(&mut self) {
        match std::mem::replace(&mut self.disposal, Disposal::Stays) {
            Disposal::Stays => {}
            Disposal::Filled(area, color) => {
                for start in area.rows(self.width) {
                    let row = &mut self.canvas[3 * start..][..3 * area.width];
                    row.as_chunks_mut().0.fill(color);
                }
            }
            Disposal::Restored(area, bytes) => {
                let rows = bytes.chunks(3 * area.width.max(1));
                for (start, row) in area.rows(self.width).zip(rows) {
                    self.canvas[3 * start..][..row.len()].copy_from_slice(row);
                }
            }
        }
    }

    fn cropped(&self, area: Area) -> Vec<u8> {
        let row = |start: usize| &self.canvas[3 * start..][..3 * area.width];
        area.rows(self.width).flat_map(row).copied().collect()
    }
}

impl Frames for GifFrames {
    fn picture(&self) -> RgbImage {
        RgbImage::from_parts(self.width, self.height, self.canvas.clone())
    }

    fn advance(&mut self) -> Result<(), PictureError> {
        self.dispose();
        let info = self.decoder.next_frame_info().map_err(|e| malformed(&e))?;
        let info = info.ok_or_else(|| malformed(&"there is no frame"))?;
        let area = Area {
            left: info.left.into(),
            top: info.top.into(),
            width: info.width.into(),
            height: info.height.into(),
        };
        let (transparent, method) = (info.transparent, info.dispose);
        let own = info.palette.as_deref().map(colors);
        let palette = own.or(self.decoder.global_palette().map(colors)).unwrap_or_default();
        let color = |index: u8| palette.get(usize::from(index)).copied().unwrap_or_default();
        let mut frame = vec![0; self.decoder.buffer_size()];
        self.decoder.read_into_buffer(&mut frame).map_err(|e| malformed(&e))?;
        if method != DisposalMethod::Any {
            self.method = method;
        }
        self.disposal = match self.method {
            DisposalMethod::Any | DisposalMethod::Keep => Disposal::Stays,
            DisposalMethod::Background => {
                let background = self.decoder.bg_color().map_or(0, |index| index as u8);
                Disposal::Filled(area, color(transparent.unwrap_or(background)))
            }
            DisposalMethod::Previous if self.has_begun => {
                Disposal::Restored(area, self.cropped(area))
            }
            // Nothing was there before.
            DisposalMethod::Previous => match transparent {
                Some(index) => Disposal::Filled(area, color(index)),
                None => Disposal::Stays,
            },
        };
        let mut hidden = transparent;
        if !self.has_begun {
            self.has_begun = true;
            // The first frame is seen whole, and around it what its transparent colour is.
            let around = color(transparent.unwrap_or(0));
            self.canvas.as_chunks_mut().0.fill(around);
            hidden = None;
        }
        for (row, start) in frame.chunks(area.width.max(1)).zip(area.rows(self.width)) {
            let pixels = self.canvas[3 * start..].as_chunks_mut().0;
            for (index, pixel) in row.iter().zip(pixels) {
                if hidden != Some(*index) {
                    *pixel = color(*index);
                }
            }
        }
        Ok(())
    }
}
