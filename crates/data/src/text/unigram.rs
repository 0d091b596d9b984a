//! The unigram model of `SentencePiece` (Kudo 2018, "Subword Regularization", section 3.2): of all
//! ways to cut a text into pieces, the one with the highest sum of log-probabilities.

use std::collections::HashMap;

/// What an unknown character costs below the rarest piece.
const UNKNOWN_PENALTY: f64 = 10.0;

/// Pieces with log-probabilities.
pub(super) struct Unigram {
    pieces: HashMap<Box<str>, (u32, f64)>,
    /// Bytes of the longest piece.
    longest: usize,
    unknown: u32,
    unknown_score: f64,
}

/// The best way to reach a place of the text.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: usize,
    id: u32,
}

impl Unigram {
    /// `pieces` are text, id and log-probability; `unknown` is the id of unknown characters.
    pub(super) fn new<'a>(pieces: impl Iterator<Item = (&'a str, u32, f64)>, unknown: u32) -> Self {
        let pieces: HashMap<Box<str>, (u32, f64)> =
            pieces.map(|(text, id, score)| (text.into(), (id, score))).collect();
        let longest = pieces.keys().map(|piece| piece.len()).max().unwrap_or(0);
        let rarest = pieces.values().map(|&(_, score)| score).fold(f64::INFINITY, f64::min);
        Self { pieces, longest, unknown, unknown_score: rarest.min(0.0) - UNKNOWN_PENALTY }
    }

    /// Appends the ids of `text` and where each piece ends. Neighbouring unknown characters are
    /// one piece.
    pub(super) fn encode(&self, text: &str, pieces: &mut Vec<(u32, std::ops::Range<usize>)>) {
        let mut best: Vec<Option<Best>> = vec![None; text.len() + 1];
        best[0] = Some(Best { score: 0.0, start: 0, id: self.unknown });
        for (start, first) in text.char_indices() {
            // Every character can be reached, as an unknown one if not otherwise.
            let so_far = best[start].map_or(0.0, |b| b.score);
            let mut offer = |end: usize, id: u32, score: f64| {
                let score = so_far + score;
                if best[end].is_none_or(|b| score > b.score) {
                    best[end] = Some(Best { score, start, id });
                }
            };
            let mut is_known = false;
            let rest = &text[start..];
            for (at, c) in rest.char_indices() {
                let end = at + c.len_utf8();
                if end > self.longest {
                    break;
                }
                if let Some(&(id, score)) = self.pieces.get(&rest[..end]) {
                    offer(start + end, id, score);
                    is_known |= at == 0;
                }
            }
            if !is_known {
                offer(start + first.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let begin = pieces.len();
        let mut end = text.len();
        while end > 0 {
            let Some(Best { start, id, .. }) = best[end] else { break };
            match pieces[begin..].last_mut() {
                Some((next, range)) if id == self.unknown && *next == id => range.start = start,
                _ => pieces.push((id, start..end)),
            }
            end = start;
        }
        pieces[begin..].reverse();
    }
}
