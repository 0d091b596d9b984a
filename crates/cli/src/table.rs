//! Tables and bars for people. Text is measured in columns of the terminal, so that Chinese labels
//! line up too.

use crate::output::harmless;
use console::{Term, measure_text_width};

/// Width of the terminal, in columns; 80 if there is none.
pub(crate) fn terminal_width() -> usize {
    Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns)).clamp(40, 120)
}

/// `share`, in [0, 1], of a bar `width` columns long, in eighths of a column.
pub(crate) fn bar(share: f32, width: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * (8 * width) as f32).round() as usize;
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

/// `text` followed by spaces up to `width` columns; longer text is cut.
pub(crate) fn pad(text: &str, width: usize) -> String {
    let text = console::truncate_str(text, width, "…");
    let missing = width.saturating_sub(measure_text_width(&text));
    format!("{text}{}", " ".repeat(missing))
}

/// `text` in an ANSI style, such as `"1"` for bold, if colours are wanted.
pub(crate) fn style(text: &str, code: &str, wanted: bool) -> String {
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The line above what is said of a picture.
pub(crate) fn heading(image: &str, color: bool) -> String {
    format!("{}\n", style(&harmless(image), "1", color))
}

/// A picture that could not be read.
pub(crate) fn unread(image: &str, error: &str, color: bool) -> String {
    let error = error.strip_prefix(&format!("{image}: ")).unwrap_or(error);
    let error = harmless(error);
    format!("{}  {} {error}\n", heading(image, color), style("error:", "31", color))
}

/// Labels with their probabilities, a line each.
pub(crate) fn bars<'a>(rows: impl Iterator<Item = (&'a str, f32)> + Clone, color: bool) -> String {
    let width = terminal_width();
    let longest = rows.clone().map(|(label, _)| measure_text_width(label)).max().unwrap_or(0);
    let label_width = longest.min(width * 2 / 5);
    let bar_width = width.saturating_sub(label_width + 14).max(4);
    let mut text = String::new();
    for (label, prob) in rows {
        let label = harmless(label);
        let bar = style(&pad(&bar(prob, bar_width), bar_width), "36", color);
        text += &format!("  {}  {bar}  {:>5.1} %\n", pad(&label, label_width), prob * 100.0);
    }
    text
}

/// Rows of cells in columns; the first row is the heading, cells of later columns end flush.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| measure_text_width(c)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(widest).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[i].saturating_sub(measure_text_width(cell)));
            line += &if i == 0 { format!("{cell}{space}") } else { format!("  {space}{cell}") };
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// A number with commas between thousands.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in a unit that suits it.
pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_cut_in_eighths() {
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(0.5, 3), "█▌");
        assert_eq!(bar(0.0, 3), "");
        assert_eq!(bar(f32::NAN, 3), "");
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        let name = "a\u{1b}[2Jb\r\u{9b}1m 白.png";
        let said = unread(name, &format!("{name}: broken"), false) + &heading(name, false);
        assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
        assert!(!bars([(name, 0.5)].into_iter(), false).contains('\u{1b}'));
    }

    #[test]
    fn wide_text_lines_up() {
        assert_eq!(pad("白鲨", 6), "白鲨  ");
        assert_eq!(pad("a long label", 6), "a lon…");
        let rows = [("白鲨", "1"), ("cat", "20")].map(|(a, b)| vec![a.to_owned(), b.to_owned()]);
        assert_eq!(columns(&rows), "白鲨   1\ncat   20\n");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(50_176), "50,176");
        assert_eq!(thousands(7), "7");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
    }
}
