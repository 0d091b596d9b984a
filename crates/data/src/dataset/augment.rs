//! Random changes to training pictures at the speed that small models need.
//!
//! The chain is: background behind transparent pictures, padding, crop resized to a square by an
//! antialiased triangle filter, flip, turn, brightness, contrast, saturation, grey. Distributions are
//! torchvision's. In between nothing is rounded to bytes, and the changes of colour, all of them
//! linear in the channels and their luma, are one pass.

use serde::{Deserialize, Serialize};

use super::{
    draw::Draw,
    error::{DatasetError, Result},
    small::Small,
};
use crate::image::RandomResizedCrop;

/// Weights of red, green and blue in the luma of BT.601.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Random changes to training pictures: `[data.augment]` of a recipe. What is not set does nothing,
/// except that the default crop is CLIP's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AugmentConfig {
    /// Range of the crop's share of the area, in (0, 1]. CLIP has 0.9 to 1, ViT 0.05 to 1.
    pub scale: [f64; 2],
    /// Range of the crop's width over its height; the logarithm is uniform.
    pub ratio: [f64; 2],
    /// Before the crop, the sides grow by a share drawn from this range, the picture at a random
    /// place. Around a transparent picture comes background, around others their border goes on.
    pub padding: [f64; 2],
    /// Probability that the colour behind a transparent picture is random; otherwise it is white.
    pub random_background: f64,
    /// Probability of a left-right flip.
    pub flip: f64,
    /// Largest turn in degrees, either way, about the centre.
    pub rotate: f64,
    /// The factor is drawn from `max(0, 1 - brightness)` to `1 + brightness`.
    pub brightness: f64,
    /// Likewise, about the mean luma of the picture.
    pub contrast: f64,
    /// Likewise, about the luma of each pixel.
    pub saturation: f64,
    /// Probability that brightness, contrast and saturation change, in random order.
    pub jitter_probability: f64,
    /// Probability of turning grey.
    pub grayscale: f64,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            scale: [0.9, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            padding: [0.0, 0.0],
            random_background: 0.0,
            flip: 0.0,
            rotate: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            jitter_probability: 1.0,
            grayscale: 0.0,
        }
    }
}

impl AugmentConfig {
    /// Whether every value is in its range.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(&self) -> Result<()> {
        let in_range = |field, values: &[f64], low: f64, high: f64, expected| {
            let ordered = values.windows(2).all(|pair| pair[0] <= pair[1]);
            if ordered && values.iter().all(|value| (low..=high).contains(value)) {
                return Ok(());
            }
            Err(DatasetError::Config { field, found: format!("{values:?}"), expected })
        };
        let range = "a lower and an upper bound from 0.0001 to 1";
        in_range("augment.scale", &self.scale, 1e-4, 1.0, range)?;
        let range = "a lower and an upper bound from 0.01 to 100";
        in_range("augment.ratio", &self.ratio, 0.01, 100.0, range)?;
        let range = "a lower and an upper bound from 0 to 10";
        in_range("augment.padding", &self.padding, 0.0, 10.0, range)?;
        in_range("augment.rotate", &[self.rotate], 0.0, 180.0, "from 0 to 180 degrees")?;
        for (field, strength) in [
            ("augment.brightness", self.brightness),
            ("augment.contrast", self.contrast),
            ("augment.saturation", self.saturation),
        ] {
            in_range(field, &[strength], 0.0, 10.0, "from 0 to 10")?;
        }
        for (field, probability) in [
            ("augment.random_background", self.random_background),
            ("augment.flip", self.flip),
            ("augment.jitter_probability", self.jitter_probability),
            ("augment.grayscale", self.grayscale),
        ] {
            in_range(field, &[probability], 0.0, 1.0, "a probability from 0 to 1")?;
        }
        Ok(())
    }

    /// Writes a changed copy of `picture`, `[3, size, size]`, with `mean` subtracted and divided by
    /// `std`, both for channels in [0, 1].
    pub(super) fn apply(
        &self,
        picture: &Small,
        size: usize,
        (mean, std): ([f32; 3], [f32; 3]),
        draw: &mut Draw,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let background = if picture.channels() == 4 && draw.chance(self.random_background) {
            std::array::from_fn(|_| draw.unit() as f32 * 255.0)
        } else {
            [255.0; 3]
        };
        let [across, down] = self.crop(picture, draw);
        let is_flipped = draw.chance(self.flip);
        if picture.channels() == 4 {
            scratch.resample::<4>(picture, across, down, size, is_flipped);
        } else {
            scratch.resample::<3>(picture, across, down, size, is_flipped);
        }
        if self.rotate > 0.0 {
            let degrees = draw.between(-self.rotate, self.rotate);
            if picture.channels() == 4 {
                scratch.turn::<4>(size, degrees);
            } else {
                scratch.turn::<3>(size, degrees);
            }
        }
        if picture.channels() == 4 {
            compose(&scratch.square, background, out);
        } else {
            split(&scratch.square, out);
        }
        self.color(draw, out).finish(mean, std, out);
    }

    /// Columns and rows of the crop in the picture's own pixels; it may reach outside.
    fn crop(&self, picture: &Small, draw: &mut Draw) -> [Stretch; 2] {
        let (width, height) = (picture.width(), picture.height());
        let grown = 1.0 + draw.between(self.padding[0], self.padding[1]);
        let length = |length: usize| ((length as f64 * grown).round() as usize).max(length);
        let (canvas_width, canvas_height) = (length(width), length(height));
        let left = draw.below(canvas_width - width + 1);
        let top = draw.below(canvas_height - height + 1);
        let crop = RandomResizedCrop {
            scale: (self.scale[0], self.scale[1]),
            ratio: (self.ratio[0], self.ratio[1]),
        };
        let window = crop.window(canvas_width, canvas_height, &mut draw.0);
        [(window.x, left), (window.y, top)].map(|(range, before)| Stretch {
            start: range.start as f64 - before as f64,
            length: range.len() as f64,
        })
    }

    /// Draws the changes of colour to the planes of `out`, in [0, 255].
    fn color(&self, draw: &mut Draw, out: &[f32]) -> Color {
        let mut color = Color::NONE;
        let strengths = [self.brightness, self.contrast, self.saturation];
        if strengths.iter().any(|&strength| strength > 0.0) && draw.chance(self.jitter_probability)
        {
            let mut order = [0, 1, 2];
            draw.shuffle(&mut order);
            for which in order {
                let strength = strengths[which];
                let factor = draw.between((1.0 - strength).max(0.0), 1.0 + strength) as f32;
                match which {
                    _ if strength <= 0.0 => {}
                    0 => color.scale(factor),
                    1 => color.contrast(factor, mean_luma(out)),
                    _ => color.saturate(factor),
                }
            }
        }
        if draw.chance(self.grayscale) {
            color.saturate(0.0);
        }
        color
    }
}

/// A stretch of one axis, in pixels of the source.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: f64,
    length: f64,
}

/// `own * channel + luma * (luma of the pixel) + offset`, which brightness, contrast and saturation
/// lead to in any order.
#[derive(Debug, Clone, Copy)]
struct Color {
    own: f32,
    luma: f32,
    offset: f32,
}

impl Color {
    const NONE: Self = Self { own: 1.0, luma: 0.0, offset: 0.0 };

    fn scale(&mut self, factor: f32) {
        self.own *= factor;
        self.luma *= factor;
        self.offset *= factor;
    }

    /// `mean` is the mean luma of the picture before any change.
    fn contrast(&mut self, factor: f32, mean: f32) {
        let mean = (self.own + self.luma) * mean + self.offset;
        self.scale(factor);
        self.offset += (1.0 - factor) * mean;
    }

    fn saturate(&mut self, factor: f32) {
        // The luma of a changed pixel is (own + luma) * its luma + offset; the offset is kept.
        self.luma = factor * self.luma + (1.0 - factor) * (self.own + self.luma);
        self.own *= factor;
    }

    /// Changes the planes of `out`, clips them to [0, 255] and normalises.
    fn finish(self, mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
        let plane = out.len() / 3;
        let (red, rest) = out.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        let factor = std.map(|std| 1.0 / (255.0 * std));
        let shift: [f32; 3] = std::array::from_fn(|c| -mean[c] / std[c]);
        for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
            let luma = LUMA[0] * *red + LUMA[1] * *green + LUMA[2] * *blue;
            let base = self.luma * luma + self.offset;
            let change = |value: f32| (self.own * value + base).clamp(0.0, 255.0);
            *red = change(*red) * factor[0] + shift[0];
            *green = change(*green) * factor[1] + shift[1];
            *blue = change(*blue) * factor[2] + shift[2];
        }
    }
}

fn mean_luma(planes: &[f32]) -> f32 {
    let plane = planes.len() / 3;
    let sums = [0, 1, 2].map(|c| {
        // Eight partial sums, so that the additions need not wait for each other.
        let (chunks, rest) = planes[c * plane..(c + 1) * plane].as_chunks::<8>();
        let mut sums = [0.0_f32; 8];
        for chunk in chunks {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum += value;
            }
        }
        sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
    });
    (LUMA[0] * sums[0] + LUMA[1] * sums[1] + LUMA[2] * sums[2]) / plane as f32
}

/// Puts premultiplied RGBA on a background: planes.
fn compose(rgba: &[f32], background: [f32; 3], out: &mut [f32]) {
    let plane = out.len() / 3;
    let (red, rest) = out.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let pixels = rgba.as_chunks::<4>().0;
    for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        let through = 1.0 - pixel[3] * (1.0 / 255.0);
        *red = pixel[0] + through * background[0];
        *green = pixel[1] + through * background[1];
        *blue = pixel[2] + through * background[2];
    }
}

/// Interleaved RGB to planes.
fn split(rgb: &[f32], out: &mut [f32]) {
    let plane = out.len() / 3;
    let (red, rest) = out.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let pixels = rgb.as_chunks::<3>().0;
    for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        [*red, *green, *blue] = *pixel;
    }
}

/// Buffers of one thread, kept from picture to picture.
#[derive(Default)]
pub(super) struct Scratch {
    across: Taps,
    down: Taps,
    row: Vec<f32>,
    /// `[size, size, channels]`.
    square: Vec<f32>,
    turned: Vec<f32>,
}

impl Scratch {
    /// Resizes the crop to a square.
    fn resample<const C: usize>(
        &mut self,
        picture: &Small,
        across: Stretch,
        down: Stretch,
        size: usize,
        is_flipped: bool,
    ) {
        let (width, height) = (picture.width(), picture.height());
        self.across.fill(across, width, size, C == 3);
        self.down.fill(down, height, size, C == 3);
        let columns = self.across.span();
        self.square.clear();
        self.square.resize(size * size * C, 0.0);
        self.row.resize(columns.len() * C, 0.0);
        for (y, line) in self.square.chunks_exact_mut(size * C).enumerate() {
            let (top, weights) = self.down.of(y);
            self.row.fill(0.0);
            for (&weight, y) in weights.iter().zip(top..) {
                let row = &picture.bytes()[(y * width + columns.start) * C..][..columns.len() * C];
                for (sum, &value) in self.row.iter_mut().zip(row) {
                    *sum += weight * f32::from(value);
                }
            }
            let row = self.row.as_chunks::<C>().0;
            for (x, pixel) in line.as_chunks_mut::<C>().0.iter_mut().enumerate() {
                let (left, weights) = self.across.of(if is_flipped { size - 1 - x } else { x });
                let mut sums = [0.0; C];
                for (&weight, values) in weights.iter().zip(&row[left - columns.start..]) {
                    for c in 0..C {
                        sums[c] += weight * values[c];
                    }
                }
                *pixel = sums;
            }
        }
    }

    /// Turns the square about its centre, bilinear.
    fn turn<const C: usize>(&mut self, size: usize, degrees: f64) {
        let (sin, cos) = degrees.to_radians().sin_cos();
        let (sin, cos) = (sin as f32, cos as f32);
        let middle = (size - 1) as f32 / 2.0;
        let last = size as isize - 1;
        let pixels = self.square.as_chunks::<C>().0;
        self.turned.clear();
        self.turned.reserve(self.square.len());
        for y in 0..size {
            for x in 0..size {
                let (dx, dy) = (x as f32 - middle, y as f32 - middle);
                let (at_x, at_y) = (middle + dx * cos + dy * sin, middle + dy * cos - dx * sin);
                let (left, top) = (at_x.floor(), at_y.floor());
                let (part_x, part_y) = (at_x - left, at_y - top);
                let value = |x: isize, y: isize, weight: f32| {
                    let (inside_x, inside_y) = (x.clamp(0, last), y.clamp(0, last));
                    let is_outside = (x, y) != (inside_x, inside_y);
                    let weight = if C == 4 && is_outside { 0.0 } else { weight };
                    pixels[inside_y as usize * size + inside_x as usize].map(|v| v * weight)
                };
                let (left, top) = (left as isize, top as isize);
                let corners = [
                    value(left, top, (1.0 - part_x) * (1.0 - part_y)),
                    value(left + 1, top, part_x * (1.0 - part_y)),
                    value(left, top + 1, (1.0 - part_x) * part_y),
                    value(left + 1, top + 1, part_x * part_y),
                ];
                let pixel: [f32; C] =
                    std::array::from_fn(|c| corners.iter().map(|corner| corner[c]).sum());
                self.turned.extend_from_slice(&pixel);
            }
        }
        std::mem::swap(&mut self.square, &mut self.turned);
    }
}

/// The weights of one axis: as many for each output position, zeros among them.
#[derive(Default)]
struct Taps {
    each: usize,
    starts: Vec<usize>,
    weights: Vec<f32>,
}

impl Taps {
    /// For `size` positions over `stretch` of an axis of `length` pixels. What lies outside counts as
    /// the border pixel if `border_goes_on`, as nothing otherwise.
    fn fill(&mut self, stretch: Stretch, length: usize, size: usize, border_goes_on: bool) {
        let scale = stretch.length / size as f64;
        let support = scale.max(1.0);
        let reach = (2.0 * support).ceil() as usize + 1;
        self.each = reach.min(length);
        self.starts.clear();
        self.weights.clear();
        self.weights.resize(size * self.each, 0.0);
        for (position, weights) in self.weights.chunks_exact_mut(self.each).enumerate() {
            let center = stretch.start + (position as f64 + 0.5) * scale;
            let first = (center - support).floor() as isize;
            let start = first.clamp(0, (length - self.each) as isize);
            let (mut sum, mut any_inside) = (0.0, false);
            for index in first..first + reach as isize {
                let distance = (index as f64 + 0.5 - center).abs() / support;
                let weight = (1.0 - distance).max(0.0) as f32;
                sum += weight;
                let inside = index.clamp(0, length as isize - 1);
                if weight > 0.0 && (border_goes_on || inside == index) {
                    weights[(inside - start) as usize] += weight;
                    any_inside = true;
                }
            }
            if any_inside {
                for weight in weights {
                    *weight /= sum;
                }
            }
            self.starts.push(start as usize);
        }
    }

    /// The first input position of an output position, and the weights from there.
    fn of(&self, position: usize) -> (usize, &[f32]) {
        (self.starts[position], &self.weights[position * self.each..][..self.each])
    }

    /// All input positions that are read.
    fn span(&self) -> std::ops::Range<usize> {
        let start = self.starts.iter().min().copied().unwrap_or(0);
        start..self.starts.iter().max().copied().unwrap_or(0) + self.each
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::draw::Purpose;

    const PLAIN: ([f32; 3], [f32; 3]) = ([0.0; 3], [1.0 / 255.0; 3]);

    fn none() -> AugmentConfig {
        AugmentConfig { scale: [1.0, 1.0], ratio: [1.0, 1.0], ..AugmentConfig::default() }
    }

    fn run(config: &AugmentConfig, picture: &Small, size: usize, position: u64) -> Vec<f32> {
        let mut out = vec![f32::NAN; 3 * size * size];
        let mut draw = Draw::new(7, 0, position, Purpose::Picture);
        config.apply(picture, size, PLAIN, &mut draw, &mut Scratch::default(), &mut out);
        out
    }

    fn close(got: &[f32], expected: &[f32]) {
        for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!((got - expected).abs() < 2e-3, "{at}: {got} instead of {expected}");
        }
    }

    /// RGBA of 6 x 6, the right half transparent.
    fn half() -> Small {
        let pixel = |x: u8, y: u8| if x < 3 { [40 * x, 30 * y, 7, 255] } else { [0; 4] };
        let pixels = (0..36).flat_map(|at| pixel(at % 6, at / 6));
        Small::transparent(6, 6, pixels.collect())
    }

    #[test]
    fn without_changes_pixels_stay() {
        let out = run(&none(), &half(), 6, 0);
        for (at, &value) in out[..36].iter().enumerate() {
            let expected = if at % 6 < 3 { 40.0 * (at % 6) as f32 } else { 255.0 };
            close(&[value], &[expected]);
        }
    }

    #[test]
    fn a_flip_mirrors() {
        let plain = run(&none(), &half(), 6, 0);
        let flipped = run(&AugmentConfig { flip: 1.0, ..none() }, &half(), 6, 0);
        for (row, mirrored) in plain.chunks(6).zip(flipped.chunks(6)) {
            let mirrored: Vec<f32> = mirrored.iter().rev().copied().collect();
            close(row, &mirrored);
        }
    }

    #[test]
    fn resizing_keeps_a_ramp_and_a_constant() {
        let pixels = (0..64 * 64).flat_map(|at| [3 * (at % 64) as u8, 90, 255, 255]).collect();
        let picture = Small::transparent(64, 64, pixels);
        for size in [16, 24, 100] {
            let out = run(&none(), &picture, size, 0);
            let plane = size * size;
            let step = 64.0 / size as f32;
            // Away from the border, where the filter has no ramp to see, the ramp stays a ramp.
            for x in size / 8 + 1..size - size / 8 - 1 {
                let center = ((x as f32 + 0.5) * step - 0.5) * 3.0;
                assert!((out[5 * size + x] - center).abs() < 1.0, "{size} {x}");
            }
            // At the border nothing comes in from outside.
            let middle = plane + size * (size / 2) + size / 2;
            close(&[out[middle], out[plane + middle]], &[90.0, 255.0]);
        }
    }

    #[test]
    fn a_quarter_turn_moves_pixels_exactly() {
        let mut scratch = Scratch { square: half_square(), ..Scratch::default() };
        scratch.turn::<4>(6, 90.0);
        let (before, after) = (half_square(), scratch.square);
        for y in 0..6 {
            for x in 0..6 {
                let from = ((5 - x) * 6 + y) * 4;
                close(&after[(y * 6 + x) * 4..][..4], &before[from..from + 4]);
            }
        }
    }

    fn half_square() -> Vec<f32> {
        half().bytes().iter().map(|&v| f32::from(v)).collect()
    }

    #[test]
    fn padding_shows_background_and_borders() {
        let config = AugmentConfig { padding: [1.0, 1.0], ..none() };
        let black = Small::transparent(4, 4, [0, 0, 0, 255].repeat(16));
        let out = run(&config, &black, 8, 3);
        let white = out[..64].iter().filter(|&&v| v > 254.0).count();
        assert_eq!(white, 64 - 16, "a picture of 4 x 4 in a canvas of 8 x 8");
        let opaque = crate::image::Picture::from(
            crate::image::RgbImage::new(4, 4, vec![9; 48]).expect("fits"),
        );
        let mut png = Vec::new();
        write_png(&opaque, &mut png);
        let opaque = Small::decode(&png, None).expect("sound");
        close(&run(&config, &opaque, 8, 3), &[9.0; 192]);
    }

    fn write_png(picture: &crate::image::Picture, out: &mut Vec<u8>) {
        let mut encoder = png::Encoder::new(out, picture.width() as u32, picture.height() as u32);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().expect("memory");
        writer.write_image_data(picture.pixels().bytes()).expect("memory");
    }

    #[test]
    fn colours_in_one_pass_equal_colours_step_by_step() {
        let pixels = [[10.0, 100.0, 60.0], [200.0, 120.0, 130.0]];
        let luma = |p: [f32; 3]| LUMA[0] * p[0] + LUMA[1] * p[1] + LUMA[2] * p[2];
        let (brightness, contrast, saturation) = (1.1, 0.7, 0.6);
        let mean = |pixels: [[f32; 3]; 2]| f32::midpoint(luma(pixels[0]), luma(pixels[1]));

        let steps = pixels.map(|p| p.map(|v| v * brightness));
        let steps = steps.map(|p| p.map(|v| saturation * v + (1.0 - saturation) * luma(p)));
        let center = mean(steps);
        let steps = steps.map(|p| p.map(|v| contrast * v + (1.0 - contrast) * center));

        let planes: Vec<f32> = (0..3).flat_map(|c| pixels.map(|p| p[c])).collect();
        let mut color = Color::NONE;
        color.scale(brightness);
        color.saturate(saturation);
        color.contrast(contrast, mean_luma(&planes));
        let mut out = planes.clone();
        color.finish(PLAIN.0, PLAIN.1, &mut out);
        close(&out, &(0..3).flat_map(|c| steps.map(|p| p[c])).collect::<Vec<_>>());

        let mut grey = Color::NONE;
        grey.saturate(0.0);
        let mut out = planes;
        grey.finish(PLAIN.0, PLAIN.1, &mut out);
        close(&out, &[0, 1, 0, 1, 0, 1].map(|at: usize| luma(pixels[at])));
    }

    #[test]
    fn ranges_are_checked() {
        for config in [
            AugmentConfig { scale: [0.9, 0.1], ..none() },
            AugmentConfig { scale: [0.0, 1.0], ..none() },
            AugmentConfig { flip: f64::NAN, ..none() },
            AugmentConfig { padding: [0.0, 1e9], ..none() },
        ] {
            assert!(config.check().is_err(), "{config:?}");
        }
        assert!(AugmentConfig::default().check().is_ok());
    }
}
