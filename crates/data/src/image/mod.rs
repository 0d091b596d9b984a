//! Pictures: decoding, resampling, preprocessing and the random crop of training.
//!
//! The yardstick is what the published models were fed: Pillow's decoders, colour conversions and
//! integer resampling, byte for byte. Only JPEG and lossy WebP decoding may differ from it, by less
//! than 1 of 255 on average; `docs/pictures.md` holds the measured figures.
//!
//! ```
//! use ocelli_data::image::{Limits, Processor, decode};
//!
//! # fn main() -> Result<(), ocelli_data::image::PictureError> {
//! let svg = br#"<svg xmlns="http://www.w3.org/2000/svg" width="8" height="4"/>"#;
//! let picture = decode(svg, &Limits::default())?;
//! let pixels = Processor::openai(224).pixels(&picture)?;
//! assert_eq!(pixels.len(), 3 * 224 * 224);
//! # Ok(())
//! # }
//! ```
//!
//! [`Video`] reads more than the first frame of a file. Left out: colour profiles (the references ignore
//! them), palettes in TIFF.

mod augment;
mod bmp;
mod config;
mod decode;
mod draw;
mod error;
mod gif;
mod gif_video;
mod grain;
mod guard;
mod jpeg;
mod picture;
mod png;
mod processor;
mod raster;
mod resize;
mod svg;
mod svg_cost;
mod video;
mod webp_video;

pub(crate) use augment::RandomResizedCrop;
pub use decode::{ENDINGS, Format, Limits, decode, open};
pub use draw::{DrawnBox, draw_boxes};
pub use error::PictureError;
pub use grain::grained;
pub use jpeg::encode as encode_jpeg;
pub use picture::{Orientation, Picture, Pixels, RgbImage};
pub use png::encode as encode_png;
pub use processor::{Crop, Order, Processor, Resize, Rounding};
pub use resize::{Filter, Window, resize};
pub use svg::render as render_svg;
pub(crate) use svg::render_transparent;
pub use video::Video;
