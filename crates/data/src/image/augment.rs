//! Random changes to training pictures: crop, flip, turn, colours.
//!
//! Distributions and arithmetic are those of torchvision on Pillow pictures (8-bit, truncating
//! blends); the random stream is not. Every number is drawn from the generator that is passed, by
//! rules of this file alone, so a seed gives the same pictures in every release.

use ::rand_chacha::rand_core::Rng;

use super::{
    picture::RgbImage,
    resize::{Filter, View, Window, resample},
};

/// A crop of random area and aspect, resized to a square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomResizedCrop {
    /// Side of the result in pixels.
    pub size: usize,
    /// Range of the crop's share of the picture's area, in (0, 1].
    pub scale: (f64, f64),
    /// Range of width over height; the logarithm is uniform.
    pub ratio: (f64, f64),
    /// The resampling filter.
    pub filter: Filter,
}

impl RandomResizedCrop {
    /// Of a share of the area in `scale`, aspect 3:4 to 4:3, bicubic.
    pub fn new(size: usize, scale: (f64, f64)) -> Self {
        Self { size, scale, ratio: (3.0 / 4.0, 4.0 / 3.0), filter: Filter::Bicubic }
    }

    /// The random rectangle inside a picture of `width` x `height`.
    pub fn window(&self, width: usize, height: usize, rng: &mut impl Rng) -> Window {
        let area = width as f64 * height as f64;
        let place = |left: usize, top: usize, width: usize, height: usize| Window {
            x: left..left + width,
            y: top..top + height,
        };
        for _ in 0..10 {
            let target = area * uniform(rng, self.scale.0, self.scale.1);
            let ratio = uniform(rng, self.ratio.0.ln(), self.ratio.1.ln()).exp();
            let crop_width = (target * ratio).sqrt().round_ties_even() as usize;
            let crop_height = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                let top = below(rng, height - crop_height + 1);
                let left = below(rng, width - crop_width + 1);
                return place(left, top, crop_width, crop_height);
            }
        }
        // No rectangle fitted: the largest one in the middle with an allowed aspect.
        let ratio = width as f64 / height as f64;
        let (mut crop_width, mut crop_height) = (width, height);
        if ratio < self.ratio.0 {
            crop_height = (width as f64 / self.ratio.0).round_ties_even() as usize;
        } else if ratio > self.ratio.1 {
            crop_width = (height as f64 * self.ratio.1).round_ties_even() as usize;
        }
        let crop_width = crop_width.clamp(1, width);
        let crop_height = crop_height.clamp(1, height);
        place((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height)
    }

    fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let window = self.window(image.width(), image.height(), rng);
        let view = View::new(image.bytes(), image.width(), image.height(), 3).part(&window, 3);
        let size = (self.size, self.size);
        let all = Window::all(self.size, self.size);
        let bytes = resample(view, 3, size, self.filter, &all);
        RgbImage::from_parts(self.size, self.size, bytes)
    }
}

/// Random brightness, contrast and saturation, in random order. A strength `s` draws a factor from
/// `max(0, 1 - s)..1 + s`; 0 leaves the picture as it is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ColorJitter {
    /// Strength.
    pub brightness: f64,
    /// Strength.
    pub contrast: f64,
    /// Strength.
    pub saturation: f64,
    /// Probability that anything happens.
    pub probability: f64,
}

impl ColorJitter {
    fn apply(&self, image: &mut RgbImage, rng: &mut impl Rng) {
        if !chance(rng, self.probability) {
            return;
        }
        let mut order = [0, 1, 2];
        for last in (1..order.len()).rev() {
            order.swap(last, below(rng, last + 1));
        }
        let strengths = [self.brightness, self.contrast, self.saturation];
        for which in order {
            let strength = strengths[which];
            if strength <= 0.0 {
                continue;
            }
            let factor = uniform(rng, (1.0 - strength).max(0.0), 1.0 + strength) as f32;
            let pixels = image.bytes_mut();
            match which {
                0 => pixels.iter_mut().for_each(|v| *v = blend(0, *v, factor)),
                1 => {
                    let sum: u64 = pixels.chunks_exact(3).map(|v| u64::from(luma(v))).sum();
                    let mean = (sum as f64 / (pixels.len() / 3) as f64 + 0.5) as u8;
                    for v in pixels.iter_mut() {
                        *v = blend(mean, *v, factor);
                    }
                }
                _ => pixels.chunks_exact_mut(3).for_each(|pixel| {
                    let grey = luma(pixel);
                    for v in pixel.iter_mut() {
                        *v = blend(grey, *v, factor);
                    }
                }),
            }
        }
    }
}

/// A chain of random changes, applied in the order of the fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Augment {
    /// Crop and resize.
    pub crop: Option<RandomResizedCrop>,
    /// Probability of a left-right flip.
    pub flip: f64,
    /// Largest turn in degrees, either way, about the centre; bilinear, borders continued.
    pub rotate: f64,
    /// Changes of colour.
    pub jitter: Option<ColorJitter>,
    /// Probability of turning grey.
    pub grayscale: f64,
}

impl Augment {
    /// CLIP training: a crop of 90 to 100 % of the area.
    pub fn clip(size: usize) -> Self {
        Self { crop: Some(RandomResizedCrop::new(size, (0.9, 1.0))), ..Self::default() }
    }

    /// `ViT` training: a bilinear crop of 5 to 100 % of the area, flipped half the time.
    pub fn inception(size: usize) -> Self {
        let crop = RandomResizedCrop {
            filter: Filter::Bilinear,
            ..RandomResizedCrop::new(size, (0.05, 1.0))
        };
        Self { crop: Some(crop), flip: 0.5, ..Self::default() }
    }

    /// A changed copy of `image`.
    pub fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let mut image = match &self.crop {
            Some(crop) => crop.apply(image, rng),
            None => image.clone(),
        };
        if self.flip > 0.0 && chance(rng, self.flip) {
            flip(&mut image);
        }
        if self.rotate > 0.0 {
            image = turn(&image, uniform(rng, -self.rotate, self.rotate));
        }
        if let Some(jitter) = &self.jitter {
            jitter.apply(&mut image, rng);
        }
        if self.grayscale > 0.0 && chance(rng, self.grayscale) {
            image.bytes_mut().chunks_exact_mut(3).for_each(|pixel| pixel.fill(luma(pixel)));
        }
        image
    }
}

/// In [0, 1), 53 bits.
fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * unit(rng)
}

fn chance(rng: &mut impl Rng, probability: f64) -> bool {
    unit(rng) < probability
}

/// An integer below `end`; the bias is below 2^-20 for pictures.
fn below(rng: &mut impl Rng, end: usize) -> usize {
    ((unit(rng) * end as f64) as usize).min(end.saturating_sub(1))
}

/// Luma of BT.601 in 16-bit fixed point.
fn luma(pixel: &[u8]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

fn blend(base: u8, value: u8, factor: f32) -> u8 {
    let mixed = f32::from(base) + factor * (f32::from(value) - f32::from(base));
    mixed.clamp(0.0, 255.0) as u8
}

fn flip(image: &mut RgbImage) {
    let line = image.width() * 3;
    for row in image.bytes_mut().chunks_exact_mut(line) {
        let mut pixels: Vec<[u8; 3]> = row.chunks_exact(3).map(|v| [v[0], v[1], v[2]]).collect();
        pixels.reverse();
        row.copy_from_slice(pixels.as_flattened());
    }
}

fn turn(image: &RgbImage, degrees: f64) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (center_x, center_y) = ((width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0);
    let pixels = image.bytes();
    let mut out = Vec::with_capacity(pixels.len());
    for y in 0..height {
        for x in 0..width {
            let (dx, dy) = (x as f64 - center_x, y as f64 - center_y);
            let at_x = (center_x + dx * cos + dy * sin).clamp(0.0, (width - 1) as f64);
            let at_y = (center_y + dy * cos - dx * sin).clamp(0.0, (height - 1) as f64);
            let (left, top) = (at_x as usize, at_y as usize);
            let (right, bottom) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
            let (part_x, part_y) = (at_x - left as f64, at_y - top as f64);
            for c in 0..3 {
                let value = |x: usize, y: usize| f64::from(pixels[(y * width + x) * 3 + c]);
                let upper = value(left, top) * (1.0 - part_x) + value(right, top) * part_x;
                let lower = value(left, bottom) * (1.0 - part_x) + value(right, bottom) * part_x;
                out.push((upper * (1.0 - part_y) + lower * part_y + 0.5) as u8);
            }
        }
    }
    RgbImage::from_parts(width, height, out)
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    use super::*;

    fn gradient(width: usize, height: usize) -> RgbImage {
        let bytes = (0..width * height)
            .flat_map(|i| [(i % width) as u8 * 3, (i / width) as u8 * 5, (i % 251) as u8])
            .collect();
        RgbImage::from_parts(width, height, bytes)
    }

    #[test]
    fn crops_keep_to_their_ranges() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let crop = RandomResizedCrop::new(8, (0.2, 0.6));
        let mut lefts = std::collections::BTreeSet::new();
        for _ in 0..500 {
            let window = crop.window(90, 70, &mut rng);
            assert!(window.x.end <= 90 && window.y.end <= 70, "{window:?}");
            let (crop_width, crop_height) = (window.x.len() as f64, window.y.len() as f64);
            let share = crop_width * crop_height / 6300.0;
            assert!((0.18..0.63).contains(&share), "{share}");
            assert!((0.72..1.39).contains(&(crop_width / crop_height)), "{window:?}");
            lefts.insert(window.x.start);
        }
        assert!(lefts.len() > 30, "crops should move");
        // Nothing of an allowed aspect fits by chance: the largest centred one.
        let all = RandomResizedCrop::new(8, (1.0, 1.0)).window(100, 10, &mut rng);
        assert_eq!(all, Window { x: 43..56, y: 0..10 });
    }

    #[test]
    fn a_crop_is_cut_and_then_resized() {
        let image = gradient(40, 30);
        let crop = RandomResizedCrop::new(16, (0.3, 0.5));
        let window = crop.window(40, 30, &mut ChaCha8Rng::seed_from_u64(3));
        let got = crop.apply(&image, &mut ChaCha8Rng::seed_from_u64(3));
        let cut: Vec<u8> = window
            .y
            .clone()
            .flat_map(|y| {
                &image.bytes()[(y * 40 + window.x.start) * 3..(y * 40 + window.x.end) * 3]
            })
            .copied()
            .collect();
        let sides = (window.x.len(), window.y.len());
        let all = Window::all(16, 16);
        let expected = super::super::resize(&cut, sides, 3, (16, 16), Filter::Bicubic, &all);
        assert_eq!(got.bytes(), expected);
    }

    #[test]
    fn colours_change_as_pillow_blends() {
        // Pillow 13: Brightness(1.3), Contrast(1.3) and Color(0.4) of (200, 100, 50), alone.
        let luma_value = luma(&[200, 100, 50]);
        assert_eq!(luma_value, 124);
        assert_eq!([200, 100, 50].map(|v| blend(0, v, 1.3)), [255, 130, 65]);
        assert_eq!([200, 100, 50].map(|v| blend(124, v, 1.3)), [222, 92, 27]);
        assert_eq!([200, 100, 50].map(|v| blend(124, v, 0.4)), [154, 114, 94]);
    }

    #[test]
    fn each_step_does_what_it_says() {
        let image = gradient(9, 6);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        assert_eq!(Augment::default().apply(&image, &mut rng), image);

        let flipped = Augment { flip: 1.0, ..Augment::default() }.apply(&image, &mut rng);
        assert_eq!(flipped.bytes()[..3], image.bytes()[24..27]);
        let grey = Augment { grayscale: 1.0, ..Augment::default() }.apply(&image, &mut rng);
        assert!(grey.bytes().chunks_exact(3).all(|v| v[0] == v[1] && v[1] == v[2]));
        assert_eq!(turn(&image, 0.0), image);
        let half = turn(&image, 180.0);
        let mut reversed: Vec<[u8; 3]> =
            image.bytes().chunks_exact(3).map(|v| [v[0], v[1], v[2]]).collect();
        reversed.reverse();
        assert_eq!(half.bytes(), reversed.as_flattened());
    }

    #[test]
    fn a_seed_gives_the_same_picture() {
        let strengths =
            ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, probability: 1.0 };
        let augment = Augment {
            rotate: 10.0,
            jitter: Some(strengths),
            grayscale: 0.2,
            ..Augment::inception(12)
        };
        let image = gradient(50, 40);
        let make = |seed| augment.apply(&image, &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(make(11), make(11));
        assert_ne!(make(11), make(12));
        // Pinned, so that a change of the random stream does not go unseen.
        let sum: u64 = make(11).bytes().iter().map(|&v| u64::from(v)).sum();
        assert_eq!(sum, 29_236);
    }
}
