//! SVG drawings with their transparency kept, so that training can put any colour behind them.

use ::resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{ImageHrefResolver, Options, Tree},
};

use crate::image::{Format, PictureError};

use super::small::Small;

/// Draws an SVG at its own aspect, the longer side `side` pixels, on nothing.
pub(super) fn draw(bytes: &[u8], side: usize) -> Result<Small, PictureError> {
    let options = Options {
        // A picture must not make this program read other files.
        image_href_resolver: ImageHrefResolver {
            resolve_data: Box::new(|_, _, _| None),
            resolve_string: Box::new(|_, _| None),
        },
        ..Options::default()
    };
    let tree = Tree::from_data(bytes, &options)
        .map_err(|e| PictureError::Malformed { format: Format::Svg, reason: e.to_string() })?;
    let size = tree.size();
    let scale = side as f32 / size.width().max(size.height());
    let length = |length: f32| (length * scale).round().clamp(1.0, side as f32) as usize;
    let (width, height) = (length(size.width()), length(size.height()));
    let mut canvas =
        Pixmap::new(width as u32, height as u32).ok_or(PictureError::NoPixels { width, height })?;
    let place = Transform::from_scale(width as f32 / size.width(), height as f32 / size.height());
    ::resvg::render(&tree, place, &mut canvas.as_mut());
    Ok(Small::transparent(width, height, canvas.take()))
}
