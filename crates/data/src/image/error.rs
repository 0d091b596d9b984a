//! What can go wrong between the bytes of a picture and the numbers a model sees.

use super::decode::Format;

/// An error about one picture or one preprocessing file.
///
/// [`super::open`] adds the path; bytes that came from elsewhere are named by their owner.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// There are no bytes at all.
    #[error("the picture is empty (0 bytes): fetch it again")]
    Empty,
    /// The first bytes belong to no format that is read here.
    #[error(
        "not a picture that can be read (starts with {start:?}): give JPEG, PNG, WebP, GIF, BMP, TIFF or SVG"
    )]
    UnknownFormat {
        /// The first bytes, as text.
        start: String,
    },
    /// The file is larger than the limit.
    #[error("{bytes} bytes are over the limit of {limit} bytes: save it smaller")]
    TooManyBytes {
        /// Found.
        bytes: u64,
        /// Allowed.
        limit: u64,
    },
    /// The header declares more pixels than the limit; nothing was allocated for them.
    #[error(
        "{format} of {width}x{height} pixels is over the limit of {limit} pixels: shrink it first"
    )]
    TooManyPixels {
        /// The format of the file.
        format: Format,
        /// Declared width in pixels.
        width: u64,
        /// Declared height in pixels.
        height: u64,
        /// Allowed number of pixels.
        limit: u64,
    },
    /// The file breaks the rules of its format or ends early.
    #[error("broken or truncated {format} ({reason}): fetch it again or save it anew")]
    Malformed {
        /// The format of the file.
        format: Format,
        /// What the decoder found.
        reason: String,
    },
    /// Drawing the SVG would take minutes or more.
    #[error("SVG with {reason} costs too much to draw: save it as PNG")]
    TooCostly {
        /// What it asks for.
        reason: String,
    },
    /// The file may be sound but holds a variant that is not read here.
    #[error("{format} with {variant} is not supported: convert it to 8-bit RGB")]
    Unsupported {
        /// The format of the file.
        format: Format,
        /// What the decoder found.
        variant: String,
    },
    /// The format does not take a picture of this size.
    #[error(
        "{width}x{height} pixels cannot be written as {format} ({reason}): shrink the picture first"
    )]
    Unwritten {
        /// The format of the file.
        format: Format,
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// What the encoder found.
        reason: String,
    },
    /// The number of bytes does not fit the sides.
    #[error(
        "a picture of {width}x{height} needs {expected} values, got {got}: pass one value per channel of each pixel"
    )]
    Length {
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
        /// Values needed.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A picture with a side of no pixels.
    #[error("a picture of {width}x{height} has no pixels: both sides must be at least 1")]
    NoPixels {
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
    },
    /// Resizing or padding by the rules of the model would need an absurd picture.
    #[error(
        "a picture of {width}x{height} would become {to_width}x{to_height} pixels on the way to the model: crop it to a less elongated shape"
    )]
    Elongated {
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
        /// In pixels.
        to_width: u64,
        /// In pixels.
        to_height: u64,
    },
    /// One frame of a video is wrong.
    #[error("frame {number}: {source}")]
    Frame {
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        source: Box<PictureError>,
    },
    /// A folder without pictures is no video.
    #[error("no picture in this folder: name one that holds the frames of a video")]
    NoFrames,
    /// A video has more frames than are read, all in all or of their size.
    #[error("a video of more than {limit} frames: leave some out")]
    TooManyFrames {
        /// Allowed.
        limit: usize,
    },
    /// A preprocessing file is not JSON.
    #[error("{file} is not valid JSON ({reason}): copy the file of the published model")]
    Json {
        /// Name of the file.
        file: &'static str,
        /// What the parser found.
        reason: String,
    },
    /// A preprocessing file asks for something unknown.
    #[error(
        "{file}: {field} is {found}, expected {expected}: edit the file or use a supported model"
    )]
    Field {
        /// Name of the file.
        file: &'static str,
        /// The key.
        field: &'static str,
        /// The value, as JSON.
        found: String,
        /// The values that are understood.
        expected: &'static str,
    },
}
