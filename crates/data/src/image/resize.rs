//! Pillow's resampling, byte for byte.
//!
//! Each output value is a weighted sum of input bytes with weights in 22-bit fixed point; the first
//! pass is rounded to bytes before the second, and a pass that would not change the size is skipped.
//! When shrinking, the filter is widened by the reduction factor (antialiasing). The horizontal pass
//! comes first unless more than twice as many rows as columns vanish; Pillow before release 13
//! always began with it; in those tall pictures about a fifth of the bytes then differ by 1.
//! Only the window that is wanted of the result is computed, so a centre crop costs what it shows.

use std::hint::black_box;
use std::ops::Range;

use multiversion::multiversion;

use super::picture::{Pixels, scale_255};

/// Bits behind the point of a weight.
const PRECISION: u32 = 22;

/// How a picture is resampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// A triangle of support 1.
    Bilinear,
    /// A cubic of support 2 with a = -0.5.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Interleaved bytes of a picture.
#[derive(Debug, Clone, Copy)]
struct View<'a> {
    bytes: &'a [u8],
    width: usize,
    height: usize,
}

impl<'a> View<'a> {
    fn new(bytes: &'a [u8], width: usize, height: usize, channels: usize) -> Self {
        debug_assert_eq!(bytes.len(), width * height * channels);
        Self { bytes, width, height }
    }

    fn row(&self, y: usize, channels: usize) -> &'a [u8] {
        &self.bytes[y * self.width * channels..][..self.width * channels]
    }
}

/// Columns and rows of a picture, in pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Columns.
    pub x: Range<usize>,
    /// Rows.
    pub y: Range<usize>,
}

impl Window {
    /// All of a picture.
    pub fn all(width: usize, height: usize) -> Self {
        Self { x: 0..width, y: 0..height }
    }
}

/// Resizes interleaved bytes of 1 to 4 channels to `size` (width, height), and returns the `window`
/// of the result, interleaved. Channels do not mix: premultiply alpha first.
///
/// # Panics
/// When `bytes` is not `width * height * channels` long, a side is 0, `channels` is not 1 to 4, or
/// the window reaches beyond `size`.
pub fn resize(
    bytes: &[u8],
    (width, height): (usize, usize),
    channels: usize,
    size: (usize, usize),
    filter: Filter,
    window: &Window,
) -> Vec<u8> {
    assert_eq!(bytes.len(), width * height * channels, "one byte per channel of each pixel");
    let view = View::new(bytes, width, height, channels);
    assert!(width > 0 && height > 0 && size.0 > 0 && size.1 > 0, "no side is 0");
    assert!(window.x.end <= size.0 && window.y.end <= size.1, "the window lies in the result");
    match channels {
        1 => resample_channels::<1>(view, size, filter, window),
        2 => resample_channels::<2>(view, size, filter, window),
        3 => resample_channels::<3>(view, size, filter, window),
        4 => resample_channels::<4>(view, size, filter, window),
        _ => panic!("pictures have 1 to 4 channels, not {channels}"),
    }
}

/// Resizes pixels in their own mode as Pillow does: palettes by nearest neighbour whatever the filter,
/// alpha premultiplied. Returns the window.
pub(super) fn resize_in_mode(
    pixels: &Pixels,
    (width, height): (usize, usize),
    size: (usize, usize),
    filter: Filter,
    window: &Window,
) -> Pixels {
    let channels = pixels.channels();
    let run = |bytes: &[u8], filter| resize(bytes, (width, height), channels, size, filter, window);
    let bytes = match pixels {
        Pixels::Palette { indices, .. } => run(indices, Filter::Nearest),
        Pixels::Rgba(bytes) | Pixels::GrayAlpha(bytes)
            if filter != Filter::Nearest && size != (width, height) =>
        {
            let mut bytes = bytes.clone();
            bytes.chunks_exact_mut(channels).for_each(premultiply);
            let mut bytes = run(&bytes, filter);
            bytes.chunks_exact_mut(channels).for_each(unpremultiply);
            bytes
        }
        _ => run(pixels.bytes(), filter),
    };
    pixels.with_bytes(bytes)
}

fn premultiply(pixel: &mut [u8]) {
    let Some((&mut alpha, colors)) = pixel.split_last_mut() else { return };
    for v in colors {
        *v = scale_255(*v, alpha);
    }
}

fn unpremultiply(pixel: &mut [u8]) {
    let Some((&mut alpha, colors)) = pixel.split_last_mut() else { return };
    if alpha != 0 && alpha != 255 {
        let alpha = u32::from(alpha);
        for v in colors {
            *v = (u32::from(*v) * 255 / alpha).min(255) as u8;
        }
    }
}

fn resample_channels<const C: usize>(
    view: View<'_>,
    size: (usize, usize),
    filter: Filter,
    window: &Window,
) -> Vec<u8> {
    if filter == Filter::Nearest {
        return nearest::<C>(view, size, window);
    }
    let across = (size.0 != view.width).then(|| Taps::new(filter, view.width, size.0, &window.x));
    let down = (size.1 != view.height).then(|| Taps::new(filter, view.height, size.1, &window.y));
    match (across, down) {
        (None, None) => window
            .y
            .clone()
            .flat_map(|y| &view.row(y, C)[window.x.start * C..window.x.end * C])
            .copied()
            .collect(),
        (Some(across), None) => horizontal::<C>(&view, &window.y, &across, 0),
        (None, Some(down)) => vertical::<C>(&view, &window.x, &down, 0),
        (Some(across), Some(down)) if vertical_first((view.width, view.height), size) => {
            let columns = across.span();
            let short = vertical::<C>(&view, &columns, &down, 0);
            let short = View::new(&short, columns.len(), window.y.len(), C);
            horizontal::<C>(&short, &(0..window.y.len()), &across, columns.start)
        }
        (Some(across), Some(down)) => {
            let rows = down.span();
            let narrow = horizontal::<C>(&view, &rows, &across, 0);
            let narrow = View::new(&narrow, window.x.len(), rows.len(), C);
            vertical::<C>(&narrow, &(0..window.x.len()), &down, rows.start)
        }
    }
}

/// Whether more than twice as many rows as columns vanish.
fn vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    to.1 < from.1 && lost(from.1, to.1) > 2 * lost(from.0, to.0)
}

/// Upper bound of the pixels between the passes, for a window of `shown` columns and rows.
pub(super) fn pixels_between(
    from: (usize, usize),
    to: (usize, usize),
    shown: (usize, usize),
) -> u64 {
    let read = |from: usize, to: usize, shown: usize| {
        let scale = from as f64 / to as f64;
        (from as u64).min((shown as f64 * scale + 4.0 * scale.max(1.0) + 2.0) as u64)
    };
    if vertical_first(from, to) {
        read(from.0, to.0, shown.0).saturating_mul(shown.1 as u64)
    } else {
        read(from.1, to.1, shown.1).saturating_mul(shown.0 as u64)
    }
}

/// The weights of one axis: for each output position, the first input position and its weights.
struct Taps {
    starts: Vec<usize>,
    weights: Vec<i32>,
    /// Where the weights of each output position end.
    ends: Vec<usize>,
}

impl Taps {
    fn new(filter: Filter, from: usize, to: usize, window: &Range<usize>) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let (support, shrink) = (filter.support() * stretch, 1.0 / stretch);
        let mut taps = Self { starts: Vec::new(), weights: Vec::new(), ends: Vec::new() };
        let mut raw = Vec::new();
        for position in window.clone() {
            let center = (position as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            raw.clear();
            raw.extend((start..end).map(|x| filter.weight((x as f64 - center + 0.5) * shrink)));
            let sum: f64 = raw.iter().sum();
            taps.weights.extend(raw.iter().map(|&weight| {
                let fixed = weight / sum * f64::from(1 << PRECISION);
                (if fixed < 0.0 { fixed - 0.5 } else { fixed + 0.5 }) as i32
            }));
            taps.starts.push(start);
            taps.ends.push(taps.weights.len());
        }
        taps
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut from = 0;
        self.starts.iter().zip(&self.ends).map(move |(&start, &end)| {
            let weights = &self.weights[from..end];
            from = end;
            (start, weights)
        })
    }

    /// All input positions that are read.
    fn span(&self) -> Range<usize> {
        let start = self.starts.first().copied().unwrap_or(0);
        let end = self.iter().map(|(start, weights)| start + weights.len()).max().unwrap_or(0);
        start..end
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Bytes of a row that are weighed side by side.
const LANES: usize = 16;

/// The weights of [`Taps`] for interleaved bytes: runs of [`LANES`], each of as many whole pixels as
/// fit, a weight once for every channel, and zeros where the filter does not reach.
struct Runs<const C: usize> {
    /// The first input position of each output position.
    starts: Vec<usize>,
    /// Runs of each output position.
    each: usize,
    weights: Vec<[i32; LANES]>,
}

impl<const C: usize> Runs<C> {
    /// Pixels of a run.
    const PIXELS: usize = LANES / C;

    /// `None` if a row of `width` pixels is shorter than the runs. Column `first` of what the
    /// weights speak of is the first column of the row.
    fn new(taps: &Taps, first: usize, width: usize) -> Option<Self> {
        let most = taps.iter().map(|(_, weights)| weights.len()).max()?;
        let each = most.div_ceil(Self::PIXELS);
        let last = width.checked_sub(each * Self::PIXELS)?;
        let mut runs = Self { starts: Vec::new(), each, weights: Vec::new() };
        for (start, weights) in taps.iter() {
            let begin = (start - first).min(last);
            let before = start - first - begin;
            runs.starts.push(begin);
            for run in 0..each {
                runs.weights.push(std::array::from_fn(|lane| {
                    let pixel = lane / C;
                    let tap = (run * Self::PIXELS + pixel).checked_sub(before);
                    let tap = tap.filter(|_| pixel < Self::PIXELS);
                    tap.and_then(|tap| weights.get(tap)).copied().unwrap_or(0)
                }));
            }
        }
        Some(runs)
    }
}

/// Rows `rows` of the view, whose first column is column `first` of what the weights speak of.
fn horizontal<const C: usize>(
    view: &View<'_>,
    rows: &Range<usize>,
    taps: &Taps,
    first: usize,
) -> Vec<u8> {
    let mut out = vec![0; rows.len() * taps.starts.len() * C];
    if let Some(runs) = Runs::<C>::new(taps, first, view.width) {
        let bytes = &view.bytes[rows.start * view.width * C..rows.end * view.width * C];
        weigh_rows::<C>(bytes, view.width, &runs, &mut out);
        return out;
    }
    let mut pixels = out.chunks_exact_mut(C);
    for y in rows.clone() {
        let row = view.row(y, C);
        for ((start, weights), pixel) in taps.iter().zip(&mut pixels) {
            let mut sums = [1_i32 << (PRECISION - 1); C];
            let start = start - first;
            let values = row[start * C..(start + weights.len()) * C].as_chunks::<C>().0;
            for (&weight, values) in weights.iter().zip(values) {
                for c in 0..C {
                    sums[c] += weight * i32::from(values[c]);
                }
            }
            for c in 0..C {
                pixel[c] = to_byte(sums[c]);
            }
        }
    }
    out
}

/// Every row of `bytes` to one of `out`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn weigh_rows<const C: usize>(bytes: &[u8], width: usize, runs: &Runs<C>, out: &mut [u8]) {
    let step = LANES / C * C;
    let stride = width * C;
    // The lanes behind the whole pixels of a run may lie behind the row.
    let last_row = [&bytes[bytes.len().saturating_sub(stride)..], &[0; LANES]].concat();
    for (y, out) in out.chunks_exact_mut(runs.starts.len() * C).enumerate() {
        let row = bytes.get(y * stride..(y + 1) * stride + LANES % C).unwrap_or(&last_row);
        let positions = runs.starts.iter().zip(runs.weights.chunks_exact(runs.each));
        for ((&start, weights), pixel) in positions.zip(out.chunks_exact_mut(C)) {
            let mut sums = [0_i32; LANES];
            for (run, weights) in weights.iter().enumerate() {
                let values = &row[start * C + run * step..][..LANES];
                for lane in 0..LANES {
                    sums[lane] += weights[lane] * i32::from(values[lane]);
                }
            }
            // A lane that nobody read would be left out, and the others would not be one vector.
            let sums = black_box(sums);
            for c in 0..C {
                let mut sum = 1 << (PRECISION - 1);
                for pixel in 0..LANES / C {
                    sum += sums[pixel * C + c];
                }
                pixel[c] = to_byte(sum);
            }
        }
    }
}

/// Columns `columns` of the view, whose first row is row `first` of what the weights speak of.
fn vertical<const C: usize>(
    view: &View<'_>,
    columns: &Range<usize>,
    taps: &Taps,
    first: usize,
) -> Vec<u8> {
    let mut out = vec![0; taps.starts.len() * columns.len() * C];
    let mut sums = vec![0_i32; columns.len() * C];
    let rows = out.chunks_exact_mut(sums.len().max(1));
    for ((start, weights), out) in taps.iter().zip(rows) {
        sums.fill(1 << (PRECISION - 1));
        for (&weight, y) in weights.iter().zip(start - first..) {
            add_weighted(&mut sums, weight, &view.row(y, C)[columns.start * C..columns.end * C]);
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = to_byte(sum);
        }
    }
    out
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn add_weighted(sums: &mut [i32], weight: i32, row: &[u8]) {
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum += weight * i32::from(value);
    }
}

/// Input positions of the nearest neighbours, accumulated in f64 as Pillow does.
fn neighbours(from: usize, to: usize, window: &Range<usize>) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut at = step * 0.5;
    let mut positions = Vec::with_capacity(window.len());
    for position in 0..window.end {
        if position >= window.start {
            positions.push((at as usize).min(from - 1));
        }
        at += step;
    }
    positions
}

fn nearest<const C: usize>(view: View<'_>, size: (usize, usize), window: &Window) -> Vec<u8> {
    let columns = neighbours(view.width, size.0, &window.x);
    let rows = neighbours(view.height, size.1, &window.y);
    let mut out = Vec::with_capacity(columns.len() * rows.len() * C);
    for y in rows {
        let row = view.row(y, C);
        for &x in &columns {
            out.extend_from_slice(&row[x * C..][..C]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One axis, one value at a time, straight from the formula; `at(line, position)` is the input.
    fn plain_axis(
        from: usize,
        to: usize,
        lines: usize,
        filter: Filter,
        at: impl Fn(usize, usize) -> u8,
    ) -> Vec<Vec<u8>> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let value = |line: usize, position: usize| {
            let center = (position as f64 + 0.5) * scale;
            let first = ((center - support + 0.5).trunc() as i64).max(0) as usize;
            let last = ((center + support + 0.5).trunc() as usize).min(from);
            let weight = |x: usize| filter.weight((x as f64 - center + 0.5) / stretch);
            let total: f64 = (first..last).map(weight).sum();
            let sum: i64 = (first..last)
                .map(|x| {
                    let fixed = (weight(x) / total * f64::from(1 << 22)).round() as i64;
                    fixed * i64::from(at(line, x))
                })
                .sum();
            ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        (0..lines).map(|line| (0..to).map(|x| value(line, x)).collect()).collect()
    }

    fn plain(
        bytes: &[u8],
        from: (usize, usize),
        channels: usize,
        to: (usize, usize),
        filter: Filter,
    ) -> Vec<u8> {
        let mut out = vec![0; to.0 * to.1 * channels];
        for c in 0..channels {
            let at = |y: usize, x: usize| bytes[(y * from.0 + x) * channels + c];
            let tall =
                to.1 < from.1 && from.1 as i64 - to.1 as i64 > 2 * (from.0 as i64 - to.0 as i64);
            // Rows of columns, [to.0][to.1].
            let columns = if tall {
                let down = plain_axis(from.1, to.1, from.0, filter, |x, y| at(y, x));
                let rows = plain_axis(from.0, to.0, to.1, filter, |y, x| down[x][y]);
                (0..to.0).map(|x| (0..to.1).map(|y| rows[y][x]).collect()).collect()
            } else {
                let rows = plain_axis(from.0, to.0, from.1, filter, at);
                plain_axis(from.1, to.1, to.0, filter, |x, y| rows[y][x])
            };
            for (x, column) in columns.iter().enumerate() {
                let column: &Vec<u8> = column;
                for (y, &value) in column.iter().enumerate() {
                    out[(y * to.0 + x) * channels + c] = value;
                }
            }
        }
        out
    }

    fn noise(len: usize, mut seed: u32) -> Vec<u8> {
        (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn equals_the_plain_loop(
            from in (1_usize..40, 1_usize..60),
            to in (1_usize..40, 1_usize..40),
            channels in 1_usize..=4,
            cubic: bool,
            seed: u32,
        ) {
            let bytes = noise(from.0 * from.1 * channels, seed);
            let filter = if cubic { Filter::Bicubic } else { Filter::Bilinear };
            let got = resize(&bytes, from, channels, to, filter, &Window::all(to.0, to.1));
            prop_assert_eq!(got, plain(&bytes, from, channels, to, filter));
        }

        #[test]
        fn a_window_is_a_part_of_the_whole(
            from in (1_usize..40, 1_usize..60),
            to in (1_usize..40, 1_usize..40),
            corners in (0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0),
            filter in prop::sample::select(vec![Filter::Nearest, Filter::Bilinear, Filter::Bicubic]),
            seed: u32,
        ) {
            let bytes = noise(from.0 * from.1 * 3, seed);
            let range = |a: f64, b: f64, end: usize| {
                let (a, b) = ((a * end as f64) as usize, (b * end as f64) as usize);
                a.min(b)..a.max(b) + 1
            };
            let window =
                Window { x: range(corners.0, corners.1, to.0), y: range(corners.2, corners.3, to.1) };
            let whole = resize(&bytes, from, 3, to, filter, &Window::all(to.0, to.1));
            let part: Vec<u8> = window
                .y
                .clone()
                .flat_map(|y| &whole[(y * to.0 + window.x.start) * 3..(y * to.0 + window.x.end) * 3])
                .copied()
                .collect();
            prop_assert_eq!(resize(&bytes, from, 3, to, filter, &window), part);
        }
    }
}
