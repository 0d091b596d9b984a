//! HTML character references ("&eacute;", "&#233;"): the HTML 5 table and its rules.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// One reference a line: its name without the ampersand, then its code points in hexadecimal.
const ENTITIES: &str = include_str!("../../assets/text/html_entities.txt");

static NAMED: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    ENTITIES
        .lines()
        .map(|line| {
            let mut fields = line.split(' ');
            let name = fields.next().unwrap_or_default();
            let text =
                fields.filter_map(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?));
            (name, text.collect())
        })
        .collect()
});

/// Names in capitals that are no references of HTML, but can only mean the one in small letters.
static IN_CAPITALS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    NAMED
        .iter()
        .filter(|(name, _)| name.ends_with(';') && **name == name.to_lowercase())
        .map(|(name, text)| (name.to_uppercase(), text.to_uppercase()))
        .filter(|(capitals, _)| named_prefix(capitals).is_none())
        .collect()
});

static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"&(?:#([0-9]+);?|#[xX]([0-9a-fA-F]+);?|([^\t\n\x0c <&#;]{1,32};?))")
        .expect("the pattern is constant")
});

static CLOSED_REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("&(#?[0-9A-Za-z]{1,24};)").expect("the pattern is constant"));

/// The longest start of `name` that is a reference, as text, and what follows it.
fn named_prefix(name: &str) -> Option<(&'static str, &str)> {
    if let Some(text) = NAMED.get(name) {
        return Some((text, ""));
    }
    name.char_indices().rev().find_map(|(end, _)| {
        let (prefix, rest) = name.split_at(end);
        Some((NAMED.get(prefix)?.as_str(), rest))
    })
}

/// The character of a numeric reference: C1 controls mean Windows-1252, and what no text may hold
/// becomes U+FFFD or nothing.
fn numbered(digits: &str, radix: u32) -> Option<char> {
    // Digits that overflow are beyond the last character all the same.
    let code = u32::from_str_radix(digits, radix).unwrap_or(u32::MAX);
    match char::from_u32(code) {
        None | Some('\0') => Some('\u{fffd}'),
        Some('\r') => Some('\r'),
        Some(c @ '\u{80}'..='\u{9f}') => Some(super::fix_encoding::c1_as_windows_1252(c)),
        Some(
            '\u{1}'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{fdd0}'..='\u{fdef}',
        ) => None,
        Some(_) if code & 0xfffe == 0xfffe => None,
        Some(c) => Some(c),
    }
}

/// Replaces every character reference, with or without its semicolon, by its characters.
pub(super) fn unescape(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    let replace = |found: &Captures<'_>| {
        if let Some(digits) = found.get(1) {
            return numbered(digits.as_str(), 10).map(String::from).unwrap_or_default();
        }
        if let Some(digits) = found.get(2) {
            return numbered(digits.as_str(), 16).map(String::from).unwrap_or_default();
        }
        match named_prefix(&found[3]) {
            Some((characters, rest)) => format!("{characters}{rest}"),
            None => found[0].to_owned(),
        }
    };
    REFERENCE.replace_all(text, replace).into_owned()
}

/// Replaces only the references that end in a semicolon, and names in capitals too, as text that
/// may not be HTML at all allows.
pub(super) fn unescape_closed(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    let replace = |found: &Captures<'_>| {
        let name = &found[1];
        if name.starts_with('#') {
            let unescaped = unescape(&found[0]);
            // A semicolon left over shows that the digits ended before it.
            return if unescaped.contains(';') { found[0].to_owned() } else { unescaped };
        }
        let named = NAMED.get(name).or_else(|| IN_CAPITALS.get(name));
        named.map_or_else(|| found[0].to_owned(), Clone::clone)
    };
    CLOSED_REFERENCE.replace_all(text, replace).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_their_characters() {
        let cases = [
            ("fish &amp; chips", "fish & chips"),
            ("&ampamp", "&amp"),
            ("&notit;", "¬it;"),
            ("&#0;&#x80;&#x1;&#xD800;&#99999999999;", "\u{fffd}€\u{fffd}\u{fffd}"),
            ("&nosuchname; &", "&nosuchname; &"),
            ("&Tab;|&NewLine;", "\t|\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn only_closed_references_count_outside_html() {
        let cases = [
            ("P&EACUTE;REZ", "PÉREZ"),
            ("BUNDESSTRA&SZLIG;E", "BUNDESSTRASSE"),
            ("&ntilde; &Ntilde; &NTILDE; &nTILDE;", "ñ Ñ Ñ &nTILDE;"),
            ("this&not that", "this&not that"),
            ("&#12ab; &#59;", "&#12ab; &#59;"),
        ];
        for (text, expected) in cases {
            assert_eq!(unescape_closed(text), expected, "{text}");
        }
    }
}
