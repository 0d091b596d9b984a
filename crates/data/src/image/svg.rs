//! SVG through `resvg`: shapes, gradients, filters and masks; no text, no embedded or linked files.

use ::resvg::{
    tiny_skia::{Color, Pixmap, Transform},
    usvg::{self, ImageHrefResolver, Tree},
};

use super::{
    decode::{Format, Limits},
    error::PictureError,
    picture::{Picture, RgbImage},
    svg_cost,
};

/// Longer side in pixels of an SVG that is decoded like any other picture.
const DECODED_SIDE: usize = 512;

/// Whether the text before the first element looks like SVG.
pub(super) fn is_svg(bytes: &[u8]) -> bool {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    let head = head.trim_start_matches('\u{feff}').trim_start();
    head.starts_with("<svg")
        || ((head.starts_with("<?xml") || head.starts_with("<!")) && head.contains("<svg"))
}

/// Draws an SVG at its own aspect, the longer side 512 pixels, on white.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, PictureError> {
    let tree = parse(bytes)?;
    let (width, height) = size_for(&tree, DECODED_SIDE);
    draw(&tree, width, height, [255; 3], limits).map(Picture::from)
}

/// Draws an SVG at its own aspect, the longer side `side` pixels, on nothing. Returns width, height
/// and `[height, width, 4]`, the colours multiplied by alpha.
pub(crate) fn render_transparent(
    bytes: &[u8],
    side: usize,
) -> Result<(usize, usize, Vec<u8>), PictureError> {
    let tree = parse(bytes)?;
    let (width, height) = size_for(&tree, side);
    let size = tree.size();
    let place = Transform::from_scale(width as f32 / size.width(), height as f32 / size.height());
    let canvas = paint(&tree, width, height, Color::TRANSPARENT, place)?;
    Ok((width, height, canvas.take()))
}

/// Draws an SVG into `width` x `height` pixels of `background`: as large as fits without changing
/// its aspect, centred.
///
/// # Errors
/// When the bytes are no SVG or the size is 0 or over the default [`Limits`].
pub fn render(
    bytes: &[u8],
    width: usize,
    height: usize,
    background: [u8; 3],
) -> Result<RgbImage, PictureError> {
    draw(&parse(bytes)?, width, height, background, &Limits::default())
}

fn parse(bytes: &[u8]) -> Result<Tree, PictureError> {
    let options = usvg::Options {
        // A picture must not make this program read other files.
        image_href_resolver: ImageHrefResolver {
            resolve_data: Box::new(|_, _, _| None),
            resolve_string: Box::new(|_, _| None),
        },
        ..usvg::Options::default()
    };
    let malformed = |e: &dyn std::fmt::Display| PictureError::Malformed {
        format: Format::Svg,
        reason: e.to_string(),
    };
    let text = std::str::from_utf8(bytes).map_err(|e| malformed(&e))?;
    svg_cost::check_text(text).map_err(|reason| PictureError::TooCostly { reason })?;
    Tree::from_str(text, &options).map_err(|e| malformed(&e))
}

/// Width and height in pixels at the drawing's own aspect, the longer one `side`.
fn size_for(tree: &Tree, side: usize) -> (usize, usize) {
    let size = tree.size();
    let scale = side as f32 / size.width().max(size.height());
    let length = |length: f32| (length * scale).round().clamp(1.0, side as f32) as usize;
    (length(size.width()), length(size.height()))
}

fn draw(
    tree: &Tree,
    width: usize,
    height: usize,
    background: [u8; 3],
    limits: &Limits,
) -> Result<RgbImage, PictureError> {
    limits.check(Format::Svg, width, height)?;
    let size = tree.size();
    let scale = (width as f32 / size.width()).min(height as f32 / size.height());
    let left = (width as f32 - size.width() * scale) / 2.0;
    let top = (height as f32 - size.height() * scale) / 2.0;
    let place = Transform::from_scale(scale, scale).post_translate(left, top);
    let [red, green, blue] = background;
    let canvas = paint(tree, width, height, Color::from_rgba8(red, green, blue, 255), place)?;
    // The canvas is opaque, so premultiplied and straight colours are the same.
    let bytes = canvas.data().chunks_exact(4).flat_map(|v| [v[0], v[1], v[2]]).collect();
    Ok(RgbImage::from_parts(width, height, bytes))
}

/// A canvas of one colour with the drawing on it.
fn paint(
    tree: &Tree,
    width: usize,
    height: usize,
    background: Color,
    place: Transform,
) -> Result<Pixmap, PictureError> {
    let mut canvas = u32::try_from(width)
        .ok()
        .zip(u32::try_from(height).ok())
        .and_then(|(width, height)| Pixmap::new(width, height))
        .ok_or(PictureError::NoPixels { width, height })?;
    let (x_scale, y_scale) = place.get_scale();
    svg_cost::check_tree(tree.root(), width, height, x_scale.max(y_scale))
        .map_err(|reason| PictureError::TooCostly { reason })?;
    canvas.fill(background);
    ::resvg::render(tree, place, &mut canvas.as_mut());
    Ok(canvas)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_RED: &[u8] = br##"<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"
        width="4" height="2"><rect width="2" height="2" fill="#f00"/></svg>"##;

    #[test]
    fn drawings_keep_their_aspect_and_lie_on_the_background() {
        let image = render(HALF_RED, 8, 8, [1, 2, 3]).expect("a sound SVG");
        let pixel = |x: usize, y: usize| &image.bytes()[(y * 8 + x) * 3..][..3];
        assert_eq!((pixel(0, 0), pixel(7, 7)), (&[1, 2, 3][..], &[1, 2, 3][..]));
        assert_eq!((pixel(3, 4), pixel(4, 4)), (&[255, 0, 0][..], &[1, 2, 3][..]));
        let picture = decode(HALF_RED, &Limits::default()).expect("a sound SVG");
        assert_eq!((picture.width(), picture.height()), (512, 256));
    }

    #[test]
    fn transparency_is_kept() {
        let (width, height, bytes) = render_transparent(HALF_RED, 8).expect("a sound SVG");
        assert_eq!((width, height), (8, 4));
        assert_eq!((&bytes[12..16], &bytes[16..20]), (&[255, 0, 0, 255][..], &[0; 4][..]));
    }

    #[test]
    fn other_files_are_not_read() {
        let linked = br#"<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4">
            <image href="/etc/hostname" width="4" height="4"/></svg>"#;
        let image = render(linked, 4, 4, [9; 3]).expect("a sound SVG");
        assert_eq!(image.bytes(), [9; 48]);
        let (_, _, bytes) = render_transparent(linked, 4).expect("a sound SVG");
        assert_eq!(bytes, [0; 64]);
    }

    #[test]
    fn drawings_that_would_take_hours_are_refused() {
        let filter = |primitive: &str| {
            format!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><filter id="f">
                {primitive}</filter><rect width="9" height="9" filter="url(#f)"/></svg>"#
            )
        };
        let turbulence = |octaves: u32| {
            filter(&format!(r#"<feTurbulence baseFrequency="0.1" numOctaves="{octaves}"/>"#))
        };
        let group = |i: u32| {
            let uses = format!(r##"<use href="#g{}"/>"##, i + 1).repeat(10);
            format!(r#"<g id="g{i}">{uses}</g>"#)
        };
        let groups: String = (0..12).map(group).collect();
        let copies = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{groups}<g id="g12"><path
            d="M0 0h9"/></g></svg>"#
        );
        let nested = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{}{}</svg>"#,
            "<g opacity='.5'>".repeat(5000),
            "</g>".repeat(5000)
        );
        let thick = filter(r#"<feMorphology operator="dilate" radius="400"/>"#);
        for (drawing, what) in [
            (turbulence(100_000_000), "steps a pixel"),
            (thick, "steps a pixel"),
            (copies, "elements once every use"),
            (nested, "deep"),
        ] {
            let error = decode(drawing.as_bytes(), &Limits::default()).expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
        }
        decode(turbulence(4).as_bytes(), &Limits::default()).expect("noise that a drawing has");
    }

    #[test]
    fn sizes_are_limited() {
        assert!(render(HALF_RED, 0, 8, [0; 3]).is_err());
        let error = render(HALF_RED, 60_000, 60_000, [0; 3]).expect_err("too large").to_string();
        assert!(error.contains("SVG of 60000x60000"), "{error}");
    }
}
