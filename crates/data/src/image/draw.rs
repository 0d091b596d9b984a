//! Boxes with labels drawn into a picture.
//!
//! Letters are the dots of an 8 x 8 font, so that no font is needed on the machine.

use font8x8::{BASIC_FONTS, GREEK_FONTS, HIRAGANA_FONTS, LATIN_FONTS, UnicodeFonts};

use super::picture::RgbImage;

/// A box to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnBox {
    /// Left, top, right and bottom, in pixels.
    pub corners: [f64; 4],
    /// What is written at it; may be empty.
    pub label: String,
}

/// Colours that differ for most eyes, after Okabe and Ito 2008.
const COLOURS: [[u8; 3]; 6] =
    [[230, 159, 0], [0, 114, 178], [0, 158, 115], [213, 94, 0], [204, 121, 167], [86, 180, 233]];
/// Letters of a label; longer ones are cut.
const LETTERS: usize = 40;
/// Side of a letter, in dots.
const SIDE: usize = 8;
/// What stands for a letter that the font does not have.
const UNKNOWN: [u8; SIDE] = [0x7e, 0x42, 0x42, 0x42, 0x42, 0x42, 0x7e, 0];

/// The picture with boxes, one colour for each label; lines and letters grow with the picture. What
/// lies outside of it is left out.
#[must_use]
pub fn draw_boxes(picture: &RgbImage, boxes: &[DrawnBox]) -> RgbImage {
    let mut canvas = Canvas {
        width: picture.width(),
        height: picture.height(),
        bytes: picture.bytes().to_vec(),
    };
    let short = canvas.width.min(canvas.height);
    let (line, dot) = ((short / 200).max(1), (short / 320).max(1));
    let colour = |label: &str| {
        let first = boxes.iter().position(|b| b.label == label).unwrap_or(0);
        COLOURS[first % COLOURS.len()]
    };
    for one in boxes {
        canvas.frame(one.corners, line, colour(&one.label));
    }
    // Above all frames, so that they can be read.
    for one in boxes.iter().filter(|b| !b.label.is_empty()) {
        canvas.label(one, dot, colour(&one.label));
    }
    RgbImage::from_parts(canvas.width, canvas.height, canvas.bytes)
}

struct Canvas {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl Canvas {
    /// Fills what lies inside of the picture.
    fn fill(&mut self, (left, top): (usize, usize), (width, height): (usize, usize), c: [u8; 3]) {
        let (right, bottom) = ((left + width).min(self.width), (top + height).min(self.height));
        for y in top..bottom {
            for x in left..right {
                self.bytes[3 * (y * self.width + x)..][..3].copy_from_slice(&c);
            }
        }
    }

    /// The pixels that a box covers, at least one: left, top, right, bottom, the last two exclusive.
    fn covered(&self, corners: [f64; 4]) -> [usize; 4] {
        let [x0, y0, x1, y1] = corners;
        // A number that is none becomes 0.
        let axis = |from: f64, to: f64, len: usize| {
            let from = (from.floor().max(0.0) as usize).min(len - 1);
            (from, (to.ceil().max(0.0) as usize).clamp(from + 1, len))
        };
        let ((left, right), (top, bottom)) = (axis(x0, x1, self.width), axis(y0, y1, self.height));
        [left, top, right, bottom]
    }

    fn frame(&mut self, corners: [f64; 4], line: usize, c: [u8; 3]) {
        let [left, top, right, bottom] = self.covered(corners);
        let (width, height) = (right - left, bottom - top);
        let (line_x, line_y) = (line.min(width), line.min(height));
        self.fill((left, top), (width, line_y), c);
        self.fill((left, bottom - line_y), (width, line_y), c);
        self.fill((left, top), (line_x, height), c);
        self.fill((right - line_x, top), (line_x, height), c);
    }

    /// The label on a ground of its colour: above the box, or in it where there is no room above.
    fn label(&mut self, one: &DrawnBox, dot: usize, c: [u8; 3]) {
        let [left, top, ..] = self.covered(one.corners);
        let letters: Vec<char> = one.label.chars().take(LETTERS).collect();
        let (width, height) = ((letters.len() * SIDE + 2) * dot, (SIDE + 2) * dot);
        let left = left.min(self.width.saturating_sub(width));
        let top = if top >= height { top - height } else { top };
        self.fill((left, top), (width, height), c);
        let light = c.iter().map(|v| u32::from(*v)).sum::<u32>() > 3 * 120;
        let ink = if light { [0; 3] } else { [255; 3] };
        let fonts: [&dyn UnicodeFonts; 4] =
            [&BASIC_FONTS, &LATIN_FONTS, &GREEK_FONTS, &HIRAGANA_FONTS];
        for (i, letter) in letters.into_iter().enumerate() {
            let rows = fonts.iter().find_map(|font| font.get(letter)).unwrap_or(UNKNOWN);
            for (y, row) in rows.into_iter().enumerate() {
                for x in (0..SIDE).filter(|x| row >> x & 1 == 1) {
                    let at = (left + (i * SIDE + x + 1) * dot, top + (y + 1) * dot);
                    self.fill(at, (dot, dot), ink);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Limits, decode, encode_png};

    fn grey(width: usize, height: usize) -> RgbImage {
        RgbImage::new(width, height, vec![128; 3 * width * height]).expect("it fits")
    }

    fn one(corners: [f64; 4], label: &str) -> DrawnBox {
        DrawnBox { corners, label: label.to_owned() }
    }

    #[test]
    fn a_frame_is_where_the_box_says_and_nowhere_else() {
        let drawn = draw_boxes(&grey(60, 40), &[one([10.0, 5.0, 30.0, 25.0], "")]);
        for y in 0..40 {
            for x in 0..60 {
                let inside = (10..30).contains(&x) && (5..25).contains(&y);
                let core = (11..29).contains(&x) && (6..24).contains(&y);
                let pixel = &drawn.bytes()[3 * (y * 60 + x)..][..3];
                let expected = if inside && !core { COLOURS[0] } else { [128; 3] };
                assert_eq!(pixel, expected, "{x}, {y}");
            }
        }
    }

    /// An I on its ground above the box, dot by dot.
    #[test]
    fn a_label_can_be_read() {
        let drawn = draw_boxes(&grey(60, 40), &[one([10.0, 20.0, 30.0, 30.0], "I")]);
        let ink = |x: usize, y: usize| drawn.bytes()[3 * ((10 + y) * 60 + 10 + x)..][..3] == [0; 3];
        let rows: Vec<String> =
            (0..10).map(|y| (0..10).map(|x| if ink(x, y) { '#' } else { '.' }).collect()).collect();
        let expected = [
            "..........",
            "..####....",
            "...##.....",
            "...##.....",
            "...##.....",
            "...##.....",
            "...##.....",
            "..####....",
            "..........",
            "..........",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn no_box_is_too_large_or_too_odd() {
        let (nan, far) = (f64::NAN, f64::INFINITY);
        for (width, height) in [(1, 1), (3, 50), (700, 400)] {
            for corners in [[0.0; 4], [-9.0, -9.0, far, far], [nan; 4], [5e9, 5e9, 6e9, 6e9]] {
                let drawn = draw_boxes(&grey(width, height), &[one(corners, "狐 fuchs Ω")]);
                assert_eq!(drawn.bytes().len(), 3 * width * height);
            }
        }
    }

    #[test]
    fn a_png_holds_the_picture() {
        let drawn = draw_boxes(&grey(33, 17), &[one([1.0, 2.0, 20.0, 16.0], "x")]);
        let png = encode_png(&drawn).expect("it is small");
        assert_eq!(decode(&png, &Limits::default()).expect("it is a PNG").to_rgb(), drawn);
    }
}
