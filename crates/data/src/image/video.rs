//! Videos: a GIF or a WebP of several frames, or a folder of pictures.
//!
//! Of a video some frames are read, at equal distances from the first to the last. They are composed one
//! after the other, and one is held at a time. Frames of a file come in RGB, as Pillow's
//! `convert("RGB")` gives them; one frame alone is what [`open`](super::open) makes of the file.

use std::path::{Path, PathBuf};

use super::{
    decode::{ENDINGS, Format, Limits, decode, open, read},
    error::PictureError,
    gif_video::GifFrames,
    guard::guarded,
    picture::{Picture, RgbImage},
    webp_video::WebPFrames,
};
use crate::Error;

/// Frames that a video may have, whatever their size.
const MOST_FRAMES: usize = 10_000;
/// Of a video in a file as many pixels are composed as this many pictures may have.
const MOST_PICTURES: u64 = 100;

/// Frames of a video, in order.
///
/// ```no_run
/// # fn main() -> Result<(), ocelli_data::Error> {
/// use ocelli_data::image::{Video, Limits};
///
/// for frame in Video::open("walk.gif", 8, &Limits::default())? {
///     println!("{} pixels wide", frame?.width());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Video {
    path: PathBuf,
    limits: Limits,
    source: Source,
    /// Numbers of the frames to come, from 0.
    chosen: std::vec::IntoIter<usize>,
    /// Frames of a file that were composed.
    composed: usize,
}

/// Frames of one file, composed one after the other.
pub(super) trait Frames: std::fmt::Debug {
    /// Goes on to the next frame.
    fn advance(&mut self) -> Result<(), PictureError>;

    /// What is seen now.
    fn picture(&self) -> RgbImage;
}

/// Where frames come from.
#[derive(Debug)]
enum Source {
    /// The only one.
    Still(Picture),
    /// A file for each.
    Folder(Vec<PathBuf>),
    File(Format, Box<dyn Frames>),
}

impl Video {
    /// The video at `path`, of which `frames` frames are read, all if it has no more. A picture that
    /// does not move is a video of one frame; of a folder the pictures in it are the frames, by name.
    ///
    /// # Errors
    /// [`Error::Io`] when `path` cannot be read, [`Error::Picture`] when it is no sound video within
    /// `limits`, has more than 10,000 frames, or more than 100 times [`Limits::max_pixels`] in them.
    pub fn open(path: impl AsRef<Path>, frames: usize, limits: &Limits) -> Result<Self, Error> {
        let path = path.as_ref();
        let wrong = |source| Error::Picture { path: path.to_path_buf(), source };
        let (source, total) = if path.is_dir() {
            let files = files(path)?;
            let total = files.len();
            if !(1..=MOST_FRAMES).contains(&total) {
                return Err(wrong(match total {
                    0 => PictureError::NoFrames,
                    _ => PictureError::TooManyFrames { limit: MOST_FRAMES },
                }));
            }
            (Source::Folder(files), total)
        } else {
            let bytes = read(path, limits)?;
            of_file(bytes, frames, limits).map_err(wrong)?
        };
        let chosen = spread(total, frames).into_iter();
        Ok(Self { path: path.to_path_buf(), limits: *limits, source, chosen, composed: 0 })
    }

    /// The frame of that number; those of a file are asked for in order.
    fn frame(&mut self, number: usize) -> Result<Picture, Error> {
        match &mut self.source {
            Source::Still(picture) => Ok(picture.clone()),
            Source::Folder(files) => {
                open(&files[number], &self.limits).map_err(|error| match error {
                    Error::Picture { path, source } => {
                        Error::Picture { path, source: of_frame(number, source) }
                    }
                    error => error,
                })
            }
            Source::File(format, frames) => {
                while self.composed <= number {
                    let done = guarded(|| frames.advance());
                    done.unwrap_or_else(|| Err(gave_up(*format))).map_err(|source| {
                        let source = of_frame(self.composed, source);
                        Error::Picture { path: self.path.clone(), source }
                    })?;
                    self.composed += 1;
                }
                Ok(frames.picture().into())
            }
        }
    }
}

impl Iterator for Video {
    type Item = Result<Picture, Error>;

    /// Nothing comes after an error.
    fn next(&mut self) -> Option<Self::Item> {
        let number = self.chosen.next()?;
        let frame = self.frame(number);
        if frame.is_err() {
            self.chosen = Vec::new().into_iter();
        }
        Some(frame)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.chosen.size_hint()
    }
}

impl ExactSizeIterator for Video {}

/// The frames of a file, and how many there are.
fn of_file(
    bytes: Vec<u8>,
    frames: usize,
    limits: &Limits,
) -> Result<(Source, usize), PictureError> {
    let format = if frames > 1 { Some(Format::of(&bytes)?) } else { None };
    match format {
        Some(Format::Gif) => {
            let survey = guarded(|| GifFrames::survey(&bytes, limits));
            let survey = survey.unwrap_or_else(|| Err(gave_up(Format::Gif)))?;
            if survey.frames > 1 {
                let total = survey.frames;
                let frames = GifFrames::new(bytes, &survey, limits)?;
                return Ok((Source::File(Format::Gif, Box::new(frames)), total));
            }
        }
        Some(Format::WebP) => {
            let survey = WebPFrames::survey(&bytes, limits)?;
            if let Some(survey) = survey.filter(|survey| survey.frames.len() > 1) {
                let total = survey.frames.len();
                let frames = WebPFrames::new(bytes, survey, limits);
                return Ok((Source::File(Format::WebP, Box::new(frames)), total));
            }
        }
        _ => {}
    }
    Ok((Source::Still(decode(&bytes, limits)?), 1))
}

fn gave_up(format: Format) -> PictureError {
    PictureError::Malformed { format, reason: "the decoder gave up on it".to_owned() }
}

/// That a frame, counted from 0, is wrong.
pub(super) fn of_frame(number: usize, source: PictureError) -> PictureError {
    PictureError::Frame { number: number + 1, source: Box::new(source) }
}

/// That there are not too many frames of a size.
pub(super) fn check_frames(
    frames: usize,
    width: usize,
    height: usize,
    limits: &Limits,
) -> Result<(), PictureError> {
    let area = (width as u64).saturating_mul(height as u64).max(1);
    let most = limits.max_pixels.saturating_mul(MOST_PICTURES) / area;
    let limit = MOST_FRAMES.min(usize::try_from(most).unwrap_or(usize::MAX));
    if frames > limit { Err(PictureError::TooManyFrames { limit }) } else { Ok(()) }
}

/// Numbers of `frames` of `total` frames at equal distances from the first to the last.
fn spread(total: usize, frames: usize) -> Vec<usize> {
    if frames >= total {
        return (0..total).collect();
    }
    let steps = frames.saturating_sub(1).max(1);
    // Rounded to the nearest frame.
    (0..frames).map(|i| (2 * i * (total - 1) + steps) / (2 * steps)).collect()
}

/// The pictures of a folder by name; hidden ones and folders in it are left out.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io { path: folder.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let is_hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let is_picture = ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()));
        // Pipes and devices would be waited for; a broken link is an error of its frame.
        if !is_hidden && is_picture && path.metadata().map_or(true, |m| m.is_file()) {
            files.push(path);
        }
        if files.len() > MOST_FRAMES {
            break;
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Where a frame lies on the canvas, in pixels.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Area {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Area {
    /// Where each of its rows begins on a canvas of that width, in pixels.
    pub(super) fn rows(self, canvas_width: usize) -> impl Iterator<Item = usize> {
        (0..self.height).map(move |y| (self.top + y) * canvas_width + self.left)
    }

    /// Whether a pixel of the canvas lies in it.
    pub(super) fn has(self, x: usize, y: usize) -> bool {
        (self.left..self.left + self.width).contains(&x)
            && (self.top..self.top + self.height).contains(&y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_lie_at_equal_distances() {
        assert_eq!(spread(9, 3), [0, 4, 8]);
        assert_eq!(spread(10, 4), [0, 3, 6, 9]);
        assert_eq!(spread(6, 4), [0, 2, 3, 5]);
        assert_eq!(spread(3, 8), [0, 1, 2]);
        assert_eq!(spread(7, 1), [0]);
    }

    #[test]
    fn long_videos_are_bounded_by_their_pixels() {
        let limits = Limits { max_pixels: 1000, ..Limits::default() };
        assert!(check_frames(100, 10, 100, &limits).is_ok());
        let limit = 100;
        let error = Err(PictureError::TooManyFrames { limit });
        assert_eq!(check_frames(101, 10, 100, &limits), error);
        assert!(check_frames(MOST_FRAMES + 1, 1, 1, &Limits::default()).is_err());
    }
}
