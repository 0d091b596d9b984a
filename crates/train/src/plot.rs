//! Curves as SVG and PNG: panels below each other, a line for each series over the steps.
//!
//! Labels are drawn as the dots of an 8 x 8 font, so that the pictures need no font on the machine
//! and the PNG is the SVG drawn once.

use crate::{Error, Result};
use font8x8::legacy::BASIC_LEGACY;
use ocelli_data::image::{encode_png, render_svg};
use std::fmt::Write;

const WIDTH: f64 = 800.0;
const PANEL: f64 = 240.0;
/// Of the drawing inside a panel.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;
/// Side of a letter.
const LETTER: f64 = 9.0;
/// Points of a line; longer series are drawn as means.
const POINTS: usize = 400;
const COLOURS: [&str; 6] = ["#1f6fb4", "#d9630b", "#2a8f3c", "#b8282e", "#7a4fa3", "#6b5346"];

/// A curve.
#[derive(Clone, Debug)]
pub(crate) struct Series<'a> {
    pub(crate) name: String,
    /// Steps and values.
    pub(crate) points: &'a [(u64, f64)],
}

/// Curves over one pair of axes.
#[derive(Clone, Debug)]
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    pub(crate) series: Vec<Series<'a>>,
}

/// The panels as an SVG document and as a PNG file.
pub(crate) fn draw(panels: &[Panel<'_>]) -> Result<(String, Vec<u8>)> {
    let height = PANEL * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        draw_panel(&mut svg, panel, PANEL * i as f64);
    }
    svg += "</svg>\n";
    let unfit = |problem: String| Error::Plot { problem };
    let (width, height) = (WIDTH as usize, height as usize);
    let picture =
        render_svg(svg.as_bytes(), width, height, [255; 3]).map_err(|e| unfit(e.to_string()))?;
    let out = encode_png(&picture).map_err(|e| unfit(e.to_string()))?;
    Ok((svg, out))
}

fn draw_panel(svg: &mut String, panel: &Panel<'_>, top: f64) {
    let all = || panel.series.iter().flat_map(|s| s.points).filter(|p| p.1.is_finite());
    let last = all().map(|p| p.0).max().unwrap_or(1).max(1) as f64;
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min).min(0.0);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let high = if high > low { high } else { low + 1.0 };
    let (width, height) = (WIDTH - LEFT - RIGHT, PANEL - TOP - BOTTOM);
    let x = |step: f64| LEFT + step / last * width;
    let y = |value: f64| top + TOP + (high - value) / (high - low) * height;
    for value in ticks(low, high) {
        let y = y(value);
        line(svg, (LEFT, y), (WIDTH - RIGHT, y), "#ddd");
        let label = number(value);
        text(svg, LEFT - 8.0 - LETTER * label.len() as f64, y - LETTER / 2.0, &label, "#444");
    }
    for step in ticks(0.0, last) {
        let (x, foot) = (x(step), top + PANEL - BOTTOM);
        line(svg, (x, foot), (x, foot + 4.0), "#444");
        let label = number(step);
        let half = LETTER * label.len() as f64 / 2.0;
        text(svg, (x - half).min(WIDTH - 2.0 * half), foot + 8.0, &label, "#444");
    }
    line(svg, (LEFT, y(low)), (WIDTH - RIGHT, y(low)), "#444");
    text(svg, LEFT, top + 12.0, &panel.title, "#000");
    let mut right = WIDTH - RIGHT;
    for (series, colour) in panel.series.iter().zip(COLOURS.iter().cycle()) {
        let mut points = String::new();
        for (step, value) in means(series.points) {
            // Writing to a string cannot fail.
            let _ = write!(points, "{:.1},{:.1} ", x(step), y(value));
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            points.trim_end()
        );
        if panel.series.len() > 1 {
            right -= LETTER * (series.name.len() + 2) as f64;
            text(svg, right, top + 12.0, &series.name, colour);
        }
    }
}

/// At most [`POINTS`] means of neighbours.
fn means(points: &[(u64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    points.chunks(points.len().div_ceil(POINTS).max(1)).filter_map(|chunk| {
        let finite: Vec<_> = chunk.iter().filter(|p| p.1.is_finite()).collect();
        let n = finite.len() as f64;
        let mean = |of: fn(&(u64, f64)) -> f64| finite.iter().map(|p| of(p)).sum::<f64>() / n;
        (n > 0.0).then(|| (mean(|p| p.0 as f64), mean(|p| p.1)))
    })
}

/// Round values between `low` and `high`, about four of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 4.0;
    let power = 10.0_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw);
    let step = step.unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    (first..first + 12).map(|i| i as f64 * step).take_while(|v| *v <= high * (1.0 + 1e-9)).collect()
}

fn number(value: f64) -> String {
    let size = value.abs();
    if size > 0.0 && size < 0.001 {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// Draws ASCII text with its upper left corner at a place: a bar for each run of dots.
fn text(svg: &mut String, left: f64, top: f64, text: &str, colour: &str) {
    let dot = LETTER / 8.0;
    let mut path = String::new();
    for (place, letter) in text.bytes().enumerate() {
        let rows = BASIC_LEGACY[usize::from(letter) % BASIC_LEGACY.len()];
        for (row, bits) in rows.iter().enumerate() {
            let mut column = 0;
            while column < 8 {
                let run = (column..8).take_while(|c| bits >> c & 1 == 1).count();
                if run > 0 {
                    let x = left + place as f64 * LETTER + column as f64 * dot;
                    let y = top + row as f64 * dot;
                    let w = run as f64 * dot;
                    let _ = write!(path, "M{x:.2} {y:.2}h{w:.2}v{dot:.2}h-{w:.2}z");
                }
                column += run + 1;
            }
        }
    }
    let _ = writeln!(svg, "<path d=\"{path}\" fill=\"{colour}\"/>");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(0.0, 850.0), [0.0, 500.0]);
        assert_eq!(ticks(0.0, 4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!([0.5, 100.0, 0.00002, 0.0].map(number), ["0.5", "100", "2.0e-5", "0"]);
    }

    #[test]
    fn a_long_curve_is_thinned_and_drawn_in_its_colour() {
        let points: Vec<(u64, f64)> =
            (0..10_000).map(|i| (i, 5.0 / (1.0 + i as f64 / 500.0))).collect();
        let series = vec![Series { name: "loss".to_owned(), points: &points }];
        let panels = [Panel { title: "loss".to_owned(), series }];
        let (svg, png) = draw(&panels).unwrap();
        let line = svg.lines().find(|l| l.starts_with("<polyline")).unwrap();
        assert_eq!(line.matches(',').count(), 400);
        let limits = ocelli_data::image::Limits::default();
        let picture = ocelli_data::image::decode(&png, &limits).unwrap();
        assert_eq!((picture.width(), picture.height()), (800, 240));
        let rgb = picture.to_rgb();
        let blue = rgb.bytes().chunks_exact(3).filter(|p| p == &[0x1f, 0x6f, 0xb4]).count();
        assert!(blue > 100, "{blue}");
    }
}
