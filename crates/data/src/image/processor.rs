//! From a picture to the numbers a vision tower reads, by the rules of each published family.
//!
//! The steps: convert to RGB (before or after resizing), pad to a square, resize, crop, rescale,
//! normalise. Bytes are Pillow's; the last two steps are a table of 256 values per channel, computed
//! in f32 exactly as the references do: `x / 255`, minus mean, divided by std.

use std::borrow::Cow;

use super::{
    error::PictureError,
    picture::{Picture, Pixels},
    resize::{Filter, Window, pixels_between, resize_in_mode},
};

/// Pixels a picture may have on the way (padded or resized); only very elongated ones get there.
const MAX_PIXELS_ON_THE_WAY: u64 = 1 << 27;

/// Mean of the channels the CLIP family was trained with, in [0, 1].
pub(super) const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of the channels the CLIP family was trained with.
pub(super) const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The size a picture is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// Not at all.
    None,
    /// Shorter side to this, longer side to `trunc(n * long / short)`.
    ShortestEdge(usize),
    /// Longer side to this, shorter side in proportion, rounded half to even.
    LongestEdge(usize),
    /// Width and height, whatever the aspect.
    Exact(usize, usize),
}

/// Where an odd difference leaves the crop, and the picture inside a crop larger than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// `floor((size - crop) / 2)`: Hugging Face.
    Floor,
    /// Half to even: torchvision, `open_clip`, timm.
    HalfEven,
}

/// A centre crop; what lies outside the picture is black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// Width and height in pixels.
    pub size: (usize, usize),
    /// Where it lies.
    pub rounding: Rounding,
}

/// When a picture is converted to RGB. It matters for palettes, alpha and four inks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Before anything else: Hugging Face, timm.
    RgbFirst,
    /// After resizing and cropping: `OpenAI`, `open_clip`.
    RgbLast,
}

/// How a model family prepares pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Processor {
    /// The size pictures are resized to.
    pub resize: Resize,
    /// The resampling filter.
    pub filter: Filter,
    /// The centre crop after resizing.
    pub crop: Option<Crop>,
    /// When pictures become RGB. Padding to a square needs RGB and makes it [`Order::RgbFirst`].
    pub order: Order,
    /// Before resizing, fill up to a square with this colour, the picture in the middle.
    pub pad_to_square: Option<[u8; 3]>,
    /// Factor from bytes to numbers, 1/255 in every published model.
    pub rescale: f64,
    /// Subtracted from each channel after rescaling.
    pub mean: [f32; 3],
    /// Divides each channel after that.
    pub std: [f32; 3],
}

impl Processor {
    /// `OpenAI` CLIP at `size` pixels: shorter edge bicubic, centre crop, then RGB.
    pub fn openai(size: usize) -> Self {
        Self {
            resize: Resize::ShortestEdge(size),
            filter: Filter::Bicubic,
            crop: Some(Crop { size: (size, size), rounding: Rounding::HalfEven }),
            order: Order::RgbLast,
            pad_to_square: None,
            rescale: 1.0 / 255.0,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// The same with the padding of `LLaVA`: to a square of the mean colour, `trunc(255 * mean)`.
    #[must_use]
    pub fn padded_to_square(mut self) -> Self {
        self.pad_to_square = Some(self.mean.map(|mean| (f64::from(mean) * 255.0) as u8));
        self
    }

    /// Width and height of every result, unless they depend on the picture.
    pub fn size(&self) -> Option<(usize, usize)> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop.size),
            (None, Resize::Exact(width, height)) => Some((width, height)),
            (None, Resize::ShortestEdge(n) | Resize::LongestEdge(n))
                if self.pad_to_square.is_some() =>
            {
                Some((n, n))
            }
            _ => None,
        }
    }

    /// Pixels of a picture's shorter side that are enough for [`Limits::enough`](super::Limits::enough),
    /// as no less comes out of resizing; none where pictures stay as large as they are.
    pub fn enough(&self) -> Option<usize> {
        match self.resize {
            Resize::None => None,
            Resize::Exact(width, height) => Some(width.max(height)),
            Resize::ShortestEdge(n) | Resize::LongestEdge(n) => Some(n),
        }
    }

    /// Width and height of the result for a picture of `width` x `height`.
    ///
    /// # Errors
    /// When the picture is so elongated that the way there would need an absurd amount of memory.
    pub fn size_for(&self, width: usize, height: usize) -> Result<(usize, usize), PictureError> {
        let plan = self.plan(width, height)?;
        Ok((plan.width, plan.height))
    }

    /// What a model sees of a picture of `width` x `height`: left and top, width and height of its
    /// field, in pixels of the picture. It ends inside of the picture where the rule crops and outside
    /// of it where the rule pads.
    ///
    /// # Errors
    /// As [`Processor::size_for`].
    pub fn field(&self, width: usize, height: usize) -> Result<[f64; 4], PictureError> {
        let plan = self.plan(width, height)?;
        let side = self.pad_to_square.map(|_| width.max(height));
        let axis = |len: usize, resized: usize, span: &Span, seen: usize| {
            let padded = side.unwrap_or(len);
            let scale = padded as f64 / resized as f64;
            let begin = (span.from as f64 - span.to as f64) * scale - ((padded - len) / 2) as f64;
            (begin, seen as f64 * scale)
        };
        let (left, seen_width) = axis(width, plan.resized.0, &plan.x, plan.width);
        let (top, seen_height) = axis(height, plan.resized.1, &plan.y, plan.height);
        Ok([left, top, seen_width, seen_height])
    }

    /// The bytes before rescaling, `[3, height, width]`.
    ///
    /// # Errors
    /// As [`Processor::size_for`].
    pub fn bytes(&self, picture: &Picture) -> Result<Vec<u8>, PictureError> {
        let plan = self.plan(picture.width(), picture.height())?;
        let mut out = vec![0; plan.values()];
        let table: [u8; 256] = std::array::from_fn(|v| v as u8);
        self.write(picture, &plan, &[table; 3], &mut out);
        Ok(out)
    }

    /// The numbers a model reads, `[3, height, width]`.
    ///
    /// # Errors
    /// As [`Processor::size_for`].
    pub fn pixels(&self, picture: &Picture) -> Result<Vec<f32>, PictureError> {
        let plan = self.plan(picture.width(), picture.height())?;
        let mut out = vec![0.0; plan.values()];
        self.write(picture, &plan, &self.table(), &mut out);
        Ok(out)
    }

    /// The number of each byte value in each channel.
    fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|c| {
            std::array::from_fn(|value| {
                // Rounded once, like the references' f64 product and like the f32 quotient x / 255.
                let scaled = (value as f64 * self.rescale) as f32;
                (scaled - self.mean[c]) / self.std[c]
            })
        })
    }

    fn plan(&self, from_width: usize, from_height: usize) -> Result<Plan, PictureError> {
        let (mut width, mut height) = (from_width, from_height);
        let sides = |(width, height): (usize, usize)| {
            if width == 0 || height == 0 {
                return Err(PictureError::NoPixels { width, height });
            }
            Ok(())
        };
        let check = |width: usize, height: usize| {
            let (to_width, to_height) = (width as u64, height as u64);
            if to_width.saturating_mul(to_height) > MAX_PIXELS_ON_THE_WAY {
                let (width, height) = (from_width, from_height);
                return Err(PictureError::Elongated { width, height, to_width, to_height });
            }
            Ok(())
        };
        if self.pad_to_square.is_some() {
            width = width.max(height);
            height = width;
            check(width, height)?;
        }
        let (short, long) = (width.min(height), width.max(height));
        let by_aspect = |short_side: usize, long_side: usize| {
            if width <= height { (short_side, long_side) } else { (long_side, short_side) }
        };
        if let Resize::ShortestEdge(0) | Resize::LongestEdge(0) = self.resize {
            sides((0, 0))?;
        }
        let resized = match self.resize {
            Resize::None => (width, height),
            Resize::Exact(width, height) => (width, height),
            Resize::ShortestEdge(n) => by_aspect(n, n.saturating_mul(long) / short),
            Resize::LongestEdge(n) => {
                let ratio = long as f64 / n as f64;
                by_aspect(((short as f64 / ratio).round_ties_even() as usize).max(1), n)
            }
        };
        let (x, y) = match self.crop {
            Some(Crop { size, rounding }) => {
                (Span::new(resized.0, size.0, rounding), Span::new(resized.1, size.1, rounding))
            }
            None => (Span::whole(resized.0), Span::whole(resized.1)),
        };
        let size = self.crop.map_or(resized, |crop| crop.size);
        sides(resized)?;
        sides(size)?;
        check(size.0, size.1)?;
        let between = pixels_between((width, height), resized, (x.len, y.len));
        if between > MAX_PIXELS_ON_THE_WAY {
            check(size.0, (between / size.0 as u64) as usize)?;
        }
        Ok(Plan { resized, x, y, width: size.0, height: size.1 })
    }

    /// Runs the plan; `table` turns bytes into values, and byte 0 fills what lies outside.
    fn write<T: Copy>(&self, picture: &Picture, plan: &Plan, table: &[[T; 256]; 3], out: &mut [T]) {
        let (mut from, mut pixels) =
            ((picture.width(), picture.height()), Cow::Borrowed(picture.pixels()));
        if let Some(color) = self.pad_to_square {
            pixels = Cow::Owned(Pixels::Rgb(pad(&pixels.to_rgb(), from, color)));
            from = (from.0.max(from.1), from.0.max(from.1));
        } else if self.order == Order::RgbFirst
            && !matches!(*pixels, Pixels::Gray(_) | Pixels::Rgb(_))
        {
            pixels = Cow::Owned(Pixels::Rgb(pixels.to_rgb().into_owned()));
        }
        let window = Window {
            x: plan.x.from..plan.x.from + plan.x.len,
            y: plan.y.from..plan.y.from + plan.y.len,
        };
        let resized = resize_in_mode(&pixels, from, plan.resized, self.filter, &window);
        let rgb = resized.to_rgb();

        let plane = plan.width * plan.height;
        for (c, plane) in out.chunks_exact_mut(plane).enumerate() {
            if (plan.x.len, plan.y.len) != (plan.width, plan.height) {
                plane.fill(table[c][0]);
            }
            let rows = plane.chunks_exact_mut(plan.width).skip(plan.y.to);
            for (line, row) in rows.zip(rgb.chunks_exact(plan.x.len * 3)) {
                for (value, pixel) in line[plan.x.to..].iter_mut().zip(row.chunks_exact(3)) {
                    *value = table[c][usize::from(pixel[c])];
                }
            }
        }
    }
}

/// Sizes on the way, in pixels.
struct Plan {
    resized: (usize, usize),
    x: Span,
    y: Span,
    width: usize,
    height: usize,
}

impl Plan {
    fn values(&self) -> usize {
        3 * self.width * self.height
    }
}

/// One axis of a crop: `len` pixels from `from` of the resized picture go to `to` of the result.
struct Span {
    from: usize,
    to: usize,
    len: usize,
}

impl Span {
    fn whole(size: usize) -> Self {
        Self { from: 0, to: 0, len: size }
    }

    fn new(size: usize, crop: usize, rounding: Rounding) -> Self {
        if crop <= size {
            let (half, odd) = ((size - crop) / 2, (size - crop) % 2);
            let up = rounding == Rounding::HalfEven && odd == 1 && half % 2 == 1;
            return Self { from: half + usize::from(up), to: 0, len: crop };
        }
        let before = match rounding {
            Rounding::Floor => (crop - size).div_ceil(2),
            Rounding::HalfEven => (crop - size) / 2,
        };
        Self { from: 0, to: before, len: size }
    }
}

/// RGB bytes in the middle of a square of `color`.
fn pad(rgb: &[u8], (width, height): (usize, usize), color: [u8; 3]) -> Vec<u8> {
    let side = width.max(height);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let mut square = color.repeat(side * side);
    for (y, row) in rgb.chunks_exact(width * 3).enumerate() {
        let at = ((top + y) * side + left) * 3;
        square[at..at + row.len()].copy_from_slice(row);
    }
    square
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A white square in a black picture is found where the field says that it is, under every rule.
    #[test]
    fn the_field_tells_where_a_pixel_went() {
        let exact =
            Processor { resize: Resize::Exact(48, 48), crop: None, ..Processor::openai(48) };
        let crop = Crop { size: (48, 48), rounding: Rounding::Floor };
        let far = Processor { resize: Resize::ShortestEdge(32), crop: Some(crop), ..exact.clone() };
        let longest = Processor { resize: Resize::LongestEdge(40), ..exact.clone() };
        let rules =
            [exact, Processor::openai(48), Processor::openai(48).padded_to_square(), far, longest];
        for (rule, (width, height)) in
            rules.iter().flat_map(|rule| [(240, 160), (150, 241)].map(|size| (rule, size)))
        {
            let (x, y, side) = (100, 90, 20);
            let mut bytes = vec![0; width * height];
            for row in bytes.chunks_exact_mut(width).skip(y).take(side) {
                row[x..x + side].fill(255);
            }
            let picture = Picture::new(width, height, Pixels::Gray(bytes)).expect("it fits");
            let seen = rule.bytes(&picture).expect("it is small");
            let (seen_width, seen_height) = rule.size_for(width, height).expect("it is small");
            let [left, top, field_width, field_height] =
                rule.field(width, height).expect("it is small");
            // The centre of what is white; padding is of a colour below 128.
            let (mut sum, mut at) = (0.0, [0.0, 0.0]);
            for (i, value) in seen[..seen_width * seen_height].iter().enumerate() {
                let weight = f64::from(value.saturating_sub(128));
                sum += weight;
                at[0] += weight * ((i % seen_width) as f64 + 0.5);
                at[1] += weight * ((i / seen_width) as f64 + 0.5);
            }
            let found = [
                left + at[0] / sum / seen_width as f64 * field_width,
                top + at[1] / sum / seen_height as f64 * field_height,
            ];
            let expected = [(x + side / 2) as f64, (y + side / 2) as f64];
            // To a fifth of a pixel that the model sees.
            let most = 0.2 * (field_width / seen_width as f64);
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs() < most, "{rule:?}, {width}: {found} {expected}");
            }
        }
    }
}
