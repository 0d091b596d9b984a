//! Repair of text that was UTF-8 but was read with a single-byte encoding ("schÃ¶n" for "schön").
//!
//! Behaves as the `fix_encoding` stage of `ftfy` 6.3.1: a pattern of unlikely neighbours decides
//! whether a text looks broken; then the first single-byte encoding that can spell it and whose
//! bytes are UTF-8 (allowing a few known kinds of damage) gives the repaired text.
// Differs from the reference: a text is repaired at most `MAX_LAYERS` times over, so that hostile
// text cannot cost quadratic time; real text has one or two layers.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use regex::bytes::Regex as BytesRegex;

use super::fix_tables::{ENCODINGS, UNLIKELY_NEIGHBOURS, Utf8Role, WINDOWS_1252, utf8_role};

/// How many layers of wrong decoding are undone.
const MAX_LAYERS: usize = 32;

/// A single-byte encoding, seen as a map from characters to bytes.
struct Encoding {
    bytes_of: HashMap<char, u8>,
    /// Byte 1A stands for U+FFFD, and undefined bytes for the C1 control of the same number.
    is_sloppy: bool,
    /// A space may have been the byte A0.
    restores_a0: bool,
}

impl Encoding {
    /// The bytes of `text`, or nothing when a character is outside the encoding.
    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|c| match c {
                '\u{1a}' if self.is_sloppy => None,
                '\u{fffd}' if self.is_sloppy => Some(0x1a),
                _ if c.is_ascii() => Some(c as u8),
                _ => self.bytes_of.get(&c).copied(),
            })
            .collect()
    }
}

static TABLES: LazyLock<Vec<Encoding>> = LazyLock::new(|| {
    ENCODINGS
        .iter()
        .map(|(name, upper_half)| Encoding {
            bytes_of: upper_half.chars().zip(0x80..=0xff).collect(),
            is_sloppy: name.starts_with("windows"),
            // In Mac Roman an en dash and a space would be mistaken for such a pair.
            restores_a0: *name != "macroman",
        })
        .collect()
});

static LOOKS_BROKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&UNLIKELY_NEIGHBOURS.join("|")).expect("the pattern is constant"));

fn bytes_pattern(alternatives: &[&str]) -> BytesRegex {
    BytesRegex::new(&format!("(?s-u){}", alternatives.join("|"))).expect("the pattern is constant")
}

/// UTF-8 sequences in which a byte A0 became a space.
static SPACE_FOR_A0: LazyLock<BytesRegex> = LazyLock::new(|| {
    bytes_pattern(&[
        r"[\xc2\xc3\xc5\xce\xd0\xd9] ",
        r"[\xe2\xe3] [\x80-\x84\x86-\x9f\xa1-\xbf]",
        r"[\xe0-\xe3][\x80-\x84\x86-\x9f\xa1-\xbf] ",
        r"\xf0 [\x80-\xbf]{2}",
        r"\xf0[\x80-\xbf] [\x80-\xbf]",
        r"\xf0[\x80-\xbf]{2} ",
    ])
});

/// UTF-8 sequences in which a byte was lost (1A, or at most one question mark).
static LOST_BYTES: LazyLock<BytesRegex> = LazyLock::new(|| {
    bytes_pattern(&[
        r"[\xc2-\xdf]\x1a",
        r"[\xc2\xc3]\?",
        r"\xed[\xa0-\xaf][\x1a?]\xed[\xb0-\xbf][\x1a?\x80-\xbf]",
        r"\xed[\xa0-\xaf][\x1a?\x80-\xbf]\xed[\xb0-\xbf][\x1a?]",
        r"[\xe0-\xef][\x1a?][\x1a\x80-\xbf]",
        r"[\xe0-\xef][\x1a\x80-\xbf][\x1a?]",
        r"[\xf0-\xf4][\x1a?][\x1a\x80-\xbf]{2}",
        r"[\xf0-\xf4][\x1a\x80-\xbf][\x1a?][\x1a\x80-\xbf]",
        r"[\xf0-\xf4][\x1a\x80-\xbf]{2}[\x1a?]",
        r"\x1a",
    ])
});

/// Whether `text` holds neighbours that real text hardly ever has.
fn looks_broken(text: &str) -> bool {
    !text.is_ascii() && LOOKS_BROKEN.is_match(text)
}

/// Undoes every layer of wrong decoding found in `text`.
pub(super) fn fix_encoding(mut text: String) -> String {
    for _ in 0..MAX_LAYERS {
        match fix_one_layer(&text) {
            Some(fixed) if fixed != text => text = fixed,
            _ => break,
        }
    }
    text
}

/// One layer, or nothing when the text is to stay.
fn fix_one_layer(text: &str) -> Option<String> {
    if !looks_broken(text) {
        return None;
    }
    for encoding in TABLES.iter() {
        let Some(mut bytes) = encoding.encode(text) else { continue };
        if encoding.restores_a0 && SPACE_FOR_A0.is_match(&bytes) {
            bytes = restore_a0(&bytes);
        }
        if encoding.is_sloppy {
            bytes = LOST_BYTES.replace_all(&bytes, "\u{fffd}".as_bytes()).into_owned();
        }
        if let Some(fixed) = decode_utf8_variants(&bytes) {
            return Some(fixed);
        }
    }
    let fixed = fix_fragments(text);
    if fixed != text {
        return Some(fixed);
    }
    // No encoding fits: at least the C1 controls were meant as Windows-1252.
    text.contains(is_c1).then(|| text.chars().map(c1_as_windows_1252).collect())
}

fn is_c1(c: char) -> bool {
    ('\u{80}'..='\u{9f}').contains(&c)
}

/// What Windows-1252 has in the place of a C1 control; any other character as it is.
pub(super) fn c1_as_windows_1252(c: char) -> char {
    if is_c1(c) { WINDOWS_1252.chars().nth(c as usize - 0x80).unwrap_or(c) } else { c }
}

/// Puts A0 back where a space stands inside a UTF-8 sequence.
///
/// C3 and a space are "à" and the space, a word of its own, except where the Portuguese words
/// "às", "àquele", "àquela" and "àquilo" follow.
fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    let mut spaced = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        spaced.push(byte);
        if let Some(after) = bytes[i..].strip_prefix(b"\xc3 ") {
            let continues_word = [&b" "[..], b"quele", b"quela", b"quilo", b"s "]
                .iter()
                .any(|rest| after.starts_with(rest));
            if !continues_word {
                spaced.push(0xa0);
            }
        }
    }
    SPACE_FOR_A0
        .replace_all(&spaced, |found: &regex::bytes::Captures<'_>| -> Vec<u8> {
            found[0].iter().map(|&b| if b == b' ' { 0xa0 } else { b }).collect()
        })
        .into_owned()
}

/// UTF-8 that may also hold C0 80 for U+0000 and surrogate pairs of three bytes each (CESU-8).
fn decode_utf8_variants(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&b| b == 0xc0 || b == 0xed) {
        let (before, special) = rest.split_at(at);
        text.push_str(std::str::from_utf8(before).ok()?);
        let (c, length) = match *special {
            [0xc0, 0x80, ..] => ('\0', 2),
            [
                0xed,
                b1 @ 0xa0..=0xaf,
                b2 @ 0x80..=0xbf,
                0xed,
                b4 @ 0xb0..=0xbf,
                b5 @ 0x80..=0xbf,
                ..,
            ] => {
                let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
                let code = 0x1_0000
                    + bits(b1, 0x0f, 16)
                    + bits(b2, 0x3f, 10)
                    + bits(b4, 0x0f, 6)
                    + bits(b5, 0x3f, 0);
                (char::from_u32(code)?, 6)
            }
            [0xed, 0x80..=0x9f, 0x80..=0xbf, ..] => {
                (std::str::from_utf8(&special[..3]).ok()?.chars().next()?, 3)
            }
            _ => return None,
        };
        text.push(c);
        rest = &special[length..];
    }
    text.push_str(std::str::from_utf8(rest).ok()?);
    Some(text)
}

/// Repairs the parts of `text` that look like wrongly decoded UTF-8, each by itself.
fn fix_fragments(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut fixed = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let after_continuation = i > 0 && utf8_role(chars[i - 1]).is_strict_continuation;
        let end = if after_continuation { i } else { end_of_sequences(&chars, i) };
        if end == i {
            fixed.push(chars[i]);
            i += 1;
            continue;
        }
        let fragment: String = chars[i..end].iter().collect();
        // A fragment that is the whole text was tried already and would recurse for ever.
        if end - i < chars.len() && looks_broken(&fragment) {
            fixed.push_str(&fix_encoding(fragment));
        } else {
            fixed.push_str(&fragment);
        }
        i = end;
    }
    fixed
}

/// The end of the run of UTF-8-like sequences that starts at `start`; `start` when there is none.
fn end_of_sequences(chars: &[char], start: usize) -> usize {
    let mut end = start;
    while let Some(&first) = chars.get(end) {
        let Utf8Role { leads: [leads_two, leads_three, leads_four], .. } = utf8_role(first);
        let continuations =
            chars[end + 1..].iter().take(3).take_while(|&&c| utf8_role(c).is_continuation).count();
        end += match continuations {
            1.. if leads_two => 2,
            2.. if leads_three => 3,
            3.. if leads_four => 4,
            _ => break,
        };
    }
    end
}
