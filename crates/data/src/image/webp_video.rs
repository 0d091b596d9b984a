//! The frames of an animated WebP, composed as libwebp composes them.
//!
//! A frame is a small WebP of its own in the container (its specification: "Extended File Format",
//! "Animation"), so each is decoded as a picture.

use std::ops::Range;

use super::{
    decode::{Format, Limits},
    error::PictureError,
    picture::{Pixels, RgbImage},
    raster,
    video::{Area, Frames, check_frames, of_frame},
};

/// Flags of the extended header.
const IS_ANIMATED: u8 = 0x02;
const HAS_ALPHA: u8 = 0x10;
/// Bytes of a frame before its picture.
const FRAME_HEADER: usize = 16;
/// A transparent pixel.
const CLEAR: [u8; 4] = [0; 4];

/// What of the frame before matters to the next.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    area: Area,
    is_cleared: bool,
    /// It did not depend on those before it.
    is_key: bool,
}

/// What is known of an animated WebP without its pixels.
pub(super) struct Survey {
    /// Where the payload of each lies.
    pub(super) frames: Vec<Range<usize>>,
    width: usize,
    height: usize,
}

/// Composes frame after frame.
#[derive(Debug)]
pub(super) struct WebPFrames {
    bytes: Vec<u8>,
    /// Those to come.
    frames: std::vec::IntoIter<Range<usize>>,
    limits: Limits,
    /// `[height, width]`, straight alpha.
    canvas: Vec<[u8; 4]>,
    width: usize,
    height: usize,
    before: Option<Before>,
}

impl WebPFrames {
    /// Finds the frames; none if the file does not move.
    pub(super) fn survey(bytes: &[u8], limits: &Limits) -> Result<Option<Survey>, PictureError> {
        let declared = bytes[4..].first_chunk::<4>().map_or(0, |n| u32::from_le_bytes(*n) as usize);
        // What lies behind the container is no part of it.
        let end = declared.saturating_add(8).min(bytes.len());
        let mut chunks = Chunks { bytes: &bytes[..end], at: 12 };
        let header = match chunks.next() {
            Some(Ok((b"VP8X", payload))) if payload.len() >= 10 => &bytes[payload],
            _ => return Ok(None),
        };
        if header[0] & IS_ANIMATED == 0 {
            return Ok(None);
        }
        let (width, height) = (1 + three_bytes(header, 4), 1 + three_bytes(header, 7));
        limits.check(Format::WebP, width, height)?;
        let mut frames = Vec::new();
        for chunk in chunks {
            let (name, payload) = chunk.map_err(|e| of_frame(frames.len(), e))?;
            if name == b"ANMF" {
                frames.push(payload);
                check_frames(frames.len(), width, height, limits)?;
            }
        }
        // A cut between two frames leaves none broken. The byte behind an odd chunk may be missing.
        if declared.saturating_add(8) > bytes.len() + 1 {
            return Err(of_frame(frames.len(), malformed("the file ends early")));
        }
        Ok(Some(Survey { frames, width, height }))
    }

    /// Ready for the first frame.
    pub(super) fn new(bytes: Vec<u8>, survey: Survey, limits: &Limits) -> Self {
        let Survey { frames, width, height } = survey;
        let (canvas, frames) = (vec![CLEAR; width * height], frames.into_iter());
        Self { bytes, frames, limits: *limits, canvas, width, height, before: None }
    }

    /// The pixels of a frame, and whether some may be translucent.
    fn decoded(&self, chunks: &[u8], area: Area) -> Result<(Vec<[u8; 4]>, bool), PictureError> {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        match (Chunks { bytes: chunks, at: 0 }).next() {
            Some(Ok((b"ALPH", _))) => {
                file.extend_from_slice(b"VP8X\x0A\0\0\0");
                file.extend_from_slice(&[HAS_ALPHA, 0, 0, 0]);
                file.extend_from_slice(&(area.width as u32 - 1).to_le_bytes()[..3]);
                file.extend_from_slice(&(area.height as u32 - 1).to_le_bytes()[..3]);
                file.extend_from_slice(chunks);
            }
            Some(Ok((b"VP8 " | b"VP8L", payload))) => {
                let end = (payload.end + payload.len() % 2).min(chunks.len());
                file.extend_from_slice(&chunks[..end]);
            }
            Some(Err(error)) => return Err(error),
            _ => return Err(malformed("the frame has no picture")),
        }
        let length = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&length.to_le_bytes());
        let picture = raster::webp(&file, &self.limits)?;
        if (picture.width(), picture.height()) != (area.width, area.height) {
            return Err(malformed("the frame is of another size than its header says"));
        }
        Ok(match picture.pixels() {
            Pixels::Rgba(bytes) => (bytes.as_chunks().0.to_vec(), true),
            other => {
                let opaque = |[r, g, b]: &[u8; 3]| [*r, *g, *b, 255];
                (other.to_rgb().as_chunks().0.iter().map(opaque).collect(), false)
            }
        })
    }
}

impl Frames for WebPFrames {
    fn picture(&self) -> RgbImage {
        let bytes = self.canvas.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect();
        RgbImage::from_parts(self.width, self.height, bytes)
    }

    fn advance(&mut self) -> Result<(), PictureError> {
        let payload = self.frames.next().ok_or_else(|| malformed("there is no frame"))?;
        let bytes = &self.bytes[payload];
        if bytes.len() < FRAME_HEADER {
            return Err(malformed("the frame ends early"));
        }
        let area = Area {
            left: 2 * three_bytes(bytes, 0),
            top: 2 * three_bytes(bytes, 3),
            width: 1 + three_bytes(bytes, 6),
            height: 1 + three_bytes(bytes, 9),
        };
        let (is_blended, is_cleared) = (bytes[15] & 2 == 0, bytes[15] & 1 != 0);
        if area.left + area.width > self.width || area.top + area.height > self.height {
            return Err(malformed("the frame lies outside of the canvas"));
        }
        let (pixels, has_alpha) = self.decoded(&bytes[FRAME_HEADER..], area)?;
        if let Some(before) = self.before.filter(|before| before.is_cleared) {
            for start in before.area.rows(self.width) {
                self.canvas[start..start + before.area.width].fill(CLEAR);
            }
        }
        let is_full = |area: Area| (area.width, area.height) == (self.width, self.height);
        let is_key = self.before.is_none_or(|before| {
            (!has_alpha || !is_blended) && is_full(area)
                || before.is_cleared && (is_full(before.area) || before.is_key)
        });
        if is_key {
            self.canvas.fill(CLEAR);
        }
        // On what was just cleared a pixel is put as it is.
        let cleared = self.before.filter(|before| before.is_cleared).map(|before| before.area);
        for (y, (row, start)) in pixels.chunks(area.width).zip(area.rows(self.width)).enumerate() {
            for (x, pixel) in row.iter().enumerate() {
                let below = &mut self.canvas[start + x];
                let is_put = is_key
                    || !is_blended
                    || pixel[3] == 255
                    || cleared.is_some_and(|c| c.has(area.left + x, area.top + y));
                *below = if is_put { *pixel } else { blended(*pixel, *below) };
            }
        }
        self.before = Some(Before { area, is_cleared, is_key });
        Ok(())
    }
}

/// One pixel over another, in the whole numbers of libwebp.
fn blended(over: [u8; 4], below: [u8; 4]) -> [u8; 4] {
    let over_alpha = u32::from(over[3]);
    if over_alpha == 0 {
        return below;
    }
    let below_alpha = (u32::from(below[3]) * (256 - over_alpha)) >> 8;
    let alpha = over_alpha + below_alpha;
    let scale = (1 << 24) / alpha;
    let channel = |i: usize| {
        let sum = u32::from(over[i]) * over_alpha + u32::from(below[i]) * below_alpha;
        ((sum * scale) >> 24) as u8
    };
    [channel(0), channel(1), channel(2), alpha as u8]
}

/// The chunks of a container: names, and where their payloads lie.
struct Chunks<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Result<(&'a [u8; 4], Range<usize>), PictureError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let start = self.at + 8;
        // Nothing comes after an error.
        self.at = self.bytes.len();
        let chunk = rest.split_first_chunk::<4>().and_then(|(name, rest)| {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            (length <= rest.len()).then_some((name, length))
        });
        let Some((name, length)) = chunk else {
            return Some(Err(malformed("a chunk ends early")));
        };
        self.at = start + length + length % 2;
        Some(Ok((name, start..start + length)))
    }
}

fn three_bytes(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) | usize::from(bytes[at + 1]) << 8 | usize::from(bytes[at + 2]) << 16
}

fn malformed(reason: &str) -> PictureError {
    PictureError::Malformed { format: Format::WebP, reason: reason.to_owned() }
}
