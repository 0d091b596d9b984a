//! Repair of untidy text, as the original CLIP tokenizer does before anything else.
//!
//! Behaves as `fix_text` of `ftfy` 6.3.1 with its default settings. In order of effect: HTML
//! references, wrongly decoded text, C1 controls, Latin ligatures, character widths, curly quotes,
//! line breaks, terminal escapes, control characters, and Unicode normalisation form C; again and
//! again until nothing changes. Surrogates do not occur in Rust's strings.

use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::fix_encoding::{c1_as_windows_1252, fix_encoding};
use super::html;

/// Characters repaired at once; a longer line is cut, as in the reference.
const MAX_SEGMENT: usize = 1_000_000;

/// Passes over one line.
// Differs from the reference, which has no bound: references nested in references would cost
// quadratic time.
const MAX_PASSES: usize = 64;

static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1b\[[\d;]*[A-Za-z]").expect("the pattern is constant"));

/// Repairs `text`: wrongly decoded characters, HTML references, odd forms of letters and quotes,
/// control characters.
///
/// ```
/// use ocelli_data::text::fix_text;
/// assert_eq!(fix_text("schÃ¶n&hellip; it’s ﬂuﬀy"), "schön… it's fluffy");
/// ```
pub fn fix_text(text: &str) -> String {
    if is_tidy(text) {
        return text.to_owned();
    }
    let mut fixed = String::with_capacity(text.len());
    // A `<` means that the text is HTML from here on, whose references are to stay.
    let mut is_html = false;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(MAX_SEGMENT).map_or(rest.len(), |(at, _)| at);
            let (segment, after) = rest.split_at(end);
            is_html |= segment.contains('<');
            fixed.push_str(&fix_segment(segment, is_html));
            rest = after;
        }
    }
    fixed
}

/// Whether `text` is printable ASCII in which nothing can need repair.
fn is_tidy(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t') && b != b'&')
}

fn fix_segment(segment: &str, is_html: bool) -> String {
    let mut text = segment.to_owned();
    for _ in 0..MAX_PASSES {
        let mut fixed = if is_html { text.clone() } else { html::unescape_closed(&text) };
        fixed = fix_encoding(fixed);
        fixed = fix_forms(&fixed);
        fixed = fixed.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}'], "\n");
        fixed = TERMINAL_ESCAPE.replace_all(&fixed, "").into_owned();
        fixed.retain(|c| !is_unwanted_control(c));
        fixed = fixed.nfc().collect();
        if fixed == text {
            break;
        }
        text = fixed;
    }
    text
}

/// Replaces C1 controls, Latin ligatures, half-width and full-width forms, and curly quotes.
fn fix_forms(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    for c in text.chars() {
        match c1_as_windows_1252(c) {
            '\u{2bc}' | '‘'..='‛' => fixed.push('\''),
            '“'..='‟' => fixed.push('"'),
            '\u{3000}' => fixed.push(' '),
            c @ '\u{ff01}'..='\u{ffef}' => fixed.extend(std::iter::once(c).nfkc()),
            c => match ligature(c) {
                Some(letters) => fixed.push_str(letters),
                None => fixed.push(c),
            },
        }
    }
    fixed
}

/// The letters of a Latin ligature or digraph that is one character for technical reasons only.
fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        // Its apostrophe is a curly quote by now.
        'ŉ' => "'n",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// ASCII controls other than white space, deprecated Arabic ones, annotations, the byte-order mark.
fn is_unwanted_control(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{8}'
            | '\u{b}'
            | '\u{e}'..='\u{1f}'
            | '\u{7f}'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_what_the_reference_repairs() {
        // Outputs of ftfy 6.3.1.
        let cases = [
            ("plain text", "plain text"),
            ("schÃ¶n", "schön"),
            ("voilÃ le travail", "voilà le travail"),
            ("Ã la mode", "à la mode"),
            ("ItÃ¢â‚¬â„¢s double mojibake", "It's double mojibake"),
            ("â€œ like this â€\u{fffd}", "\" like this \u{fffd}"),
            ("âœ” No problems", "✔ No problems"),
            ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ Ｕﾀｰﾝ", "LOUD NOISES Uターン"),
            ("\u{1b}[36;44mblue\u{1b}[0m\u{7}", "blue"),
            ("a\r\nb\rc\u{2028}d", "a\nb\nc\nd"),
            ("<b> &amp;\n&amp;", "<b> &amp;\n&amp;"),
            ("ŉ cafe\u{301}", "'n café"),
            ("ÅÄÖ is Swedish", "ÅÄÖ is Swedish"),
        ];
        for (text, expected) in cases {
            assert_eq!(fix_text(text), expected, "{text:?}");
        }
    }

    #[test]
    fn hostile_nesting_ends() {
        let nested = format!("&{}", "amp;".repeat(20_000));
        assert!(fix_text(&nested).len() < nested.len());
    }
}
