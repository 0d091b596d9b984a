//! Grids of cells that are seen or not, as text and as SVG.

use crate::output::harmless;
use crate::table::pad;
use console::measure_text_width;
use std::fmt::Write;

/// Columns that belong together.
pub(super) struct Columns {
    name: &'static str,
    /// What each row sees of them.
    seen: Vec<Vec<bool>>,
}

impl Columns {
    pub(super) fn new(name: &'static str, seen: Vec<Vec<bool>>) -> Self {
        Self { name, seen }
    }

    fn count(&self) -> usize {
        self.seen.first().map_or(0, Vec::len)
    }
}

/// A row for each token that sees.
pub(super) struct Grid {
    pub(super) title: String,
    pub(super) rows: Vec<String>,
    pub(super) columns: Vec<Columns>,
}

/// Columns of the terminal that the name of a row takes at most.
const NAME: usize = 20;

impl Grid {
    /// Parts without columns are left out.
    fn parts(&self) -> impl Iterator<Item = &Columns> {
        self.columns.iter().filter(|part| part.count() > 0)
    }

    /// The grid for a terminal.
    pub(super) fn printed(&self) -> String {
        let digits = |n: usize| n.to_string().len();
        let numbers = digits(self.rows.len());
        let names = self.rows.iter().map(|name| measure_text_width(name)).max().unwrap_or(0);
        let names = names.min(NAME);
        let indent = " ".repeat(numbers + 1 + names);
        let (mut heads, mut counts) = (indent.clone(), indent);
        let mut lines: Vec<String> = self
            .rows
            .iter()
            .enumerate()
            .map(|(i, name)| format!("{:>numbers$} {}", i + 1, pad(&harmless(name), names)))
            .collect();
        for part in self.parts() {
            let cell = digits(part.count()) + 1;
            // The name of a part may be wider than its cells.
            let width = (cell * part.count()).max(part.name.len() + 1);
            write!(heads, "   {:<width$}", part.name).expect("writing to a string");
            let numbers: Vec<String> = (1..=part.count()).map(|n| format!("{n:>cell$}")).collect();
            let numbered = numbers.concat();
            write!(counts, "  {numbered:<0$}", width + 1).expect("writing to a string");
            for (line, seen) in lines.iter_mut().zip(&part.seen) {
                let mark = |seen: &bool| format!("{:>cell$}", if *seen { "█" } else { "·" });
                let cells: String = seen.iter().map(mark).collect();
                write!(line, "  {cells:<0$}", width + 1).expect("writing to a string");
            }
        }
        let all = [format!("{}:", self.title), heads, counts].into_iter().chain(lines);
        let all: Vec<String> = all.map(|line| format!("{}\n", line.trim_end())).collect();
        all.concat()
    }
}

/// Side of a cell, in pixels.
const CELL: usize = 18;
/// Between parts, and around the drawing.
const GAP: usize = 14;
/// Of a letter of a row's name.
const LETTER: usize = 8;
/// Of a title with the numbers of columns below it.
const HEAD: usize = 62;

/// Grids below each other as an SVG document.
pub(super) fn document(grids: &[Grid]) -> String {
    let letters = |grid: &Grid| grid.rows.iter().map(|r| measure_text_width(r)).max().unwrap_or(0);
    let left = GAP + LETTER * grids.iter().map(letters).max().unwrap_or(0) + GAP;
    let wide = |grid: &Grid| grid.parts().map(|part| CELL * part.count() + GAP).sum::<usize>();
    let titles = grids.iter().map(|grid| GAP + LETTER * grid.title.len()).max().unwrap_or(0);
    let width = (left + grids.iter().map(wide).max().unwrap_or(0)).max(titles) + GAP;
    let height: usize = grids.iter().map(|grid| HEAD + CELL * grid.rows.len() + GAP).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let mut top = 0;
    for grid in grids {
        draw(&mut svg, grid, left, top);
        top += HEAD + CELL * grid.rows.len() + GAP;
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, grid: &Grid, left: usize, top: usize) {
    text(svg, GAP, top + 18, "start", &grid.title);
    let first = top + HEAD;
    for (i, name) in grid.rows.iter().enumerate() {
        text(svg, left - 6, first + CELL * i + 14, "end", name);
    }
    let mut x = left;
    for part in grid.parts() {
        text(svg, x, top + 38, "start", part.name);
        for n in 0..part.count() {
            text(svg, x + CELL * n + CELL / 2, top + 56, "middle", &(n + 1).to_string());
        }
        for (i, row) in part.seen.iter().enumerate() {
            for (n, seen) in row.iter().enumerate() {
                let fill = if *seen { "#1f6fb4" } else { "#eef1f4" };
                let (x, y, side) = (x + CELL * n + 1, first + CELL * i + 1, CELL - 2);
                writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" fill=\"{fill}\"/>"
                )
                .expect("writing to a string");
            }
        }
        x += CELL * part.count() + GAP;
    }
}

fn text(svg: &mut String, x: usize, y: usize, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", harmless(&words))
        .expect("writing to a string");
}
