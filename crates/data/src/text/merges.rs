//! Byte-pair merges: two neighbouring symbols become one, lowest rank first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::error::{Result, TextError};

/// A merge of two symbols.
#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    result: u32,
}

/// Which two symbols become which third, and in which order.
pub(super) struct PairMerges(HashMap<(u32, u32), Merge>);

impl PairMerges {
    /// Merges in the order of a file, each with its line. Both parts and the result must be in
    /// the vocabulary.
    pub(super) fn listed(
        file: &str,
        ids: &HashMap<String, u32>,
        merges: &[(usize, &str, &str)],
    ) -> Result<Self> {
        let mut pairs = HashMap::with_capacity(merges.len());
        for (rank, &(line, left, right)) in (0..).zip(merges) {
            let id_of = |symbol: &str| {
                ids.get(symbol).copied().ok_or_else(|| TextError::UnknownSymbol {
                    file: file.to_owned(),
                    line,
                    symbol: symbol.to_owned(),
                })
            };
            let result = id_of(&format!("{left}{right}"))?;
            pairs.insert((id_of(left)?, id_of(right)?), Merge { rank, result });
        }
        Ok(Self(pairs))
    }

    /// Merges that follow from pieces alone: any two pieces that make up a third, which is one of
    /// `results` with a rank. `refine` gives every pair of a rank its own rank, shorter left parts
    /// first, as transformers lists them; `SentencePiece` itself takes the leftmost of a rank.
    pub(super) fn of_pieces<'a>(
        ids: &HashMap<String, u32>,
        results: impl Iterator<Item = (&'a str, u32, u32)>,
        refine: bool,
    ) -> Self {
        let mut found = Vec::new();
        for (piece, result, rank) in results {
            for (chars, (at, _)) in piece.char_indices().enumerate().skip(1) {
                let (left, right) = piece.split_at(at);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    found.push((rank, chars, (left, right), result));
                }
            }
        }
        if refine {
            found.sort_by_key(|&(rank, chars, ..)| (rank, chars));
        }
        let ranked = (0..).zip(found).map(|(order, (rank, _, pair, result))| {
            (pair, Merge { rank: if refine { order } else { rank }, result })
        });
        Self(ranked.collect())
    }

    /// Merges the symbols `ids` until no merge applies: lowest rank first, then from the left.
    pub(super) fn apply(&self, ids: &mut Vec<u32>) {
        let count = ids.len();
        // A symbol reaches to `next[start]`; merged ones leave dead places behind.
        let mut next: Vec<usize> = (1..=count).collect();
        let mut previous: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let mut is_dead = vec![false; count];
        let merge_at = |ids: &[u32], next: &[usize], at: usize| {
            self.0.get(&(ids[at], *ids.get(next[at])?)).copied()
        };
        let candidate = |ids: &[u32], next: &[usize], at: usize| {
            merge_at(ids, next, at).map(|m| Reverse((m.rank, at, m.result)))
        };
        let mut queue: BinaryHeap<_> =
            (0..count).filter_map(|at| candidate(ids, &next, at)).collect();
        while let Some(Reverse((_, at, result))) = queue.pop() {
            let still_is = |m: Merge| m.result == result;
            if is_dead[at] || !merge_at(ids, &next, at).is_some_and(still_is) {
                continue;
            }
            let gone = next[at];
            ids[at] = result;
            is_dead[gone] = true;
            next[at] = next[gone];
            if let Some(follower) = previous.get_mut(next[at]) {
                *follower = at;
            }
            if at > 0 {
                queue.extend(candidate(ids, &next, previous[at]));
            }
            queue.extend(candidate(ids, &next, at));
        }
        let mut places = is_dead.iter();
        ids.retain(|_| !places.next().expect("one place for each symbol"));
    }
}
