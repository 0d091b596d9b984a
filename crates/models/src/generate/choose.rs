//! Choosing a token from its logits.

use super::{Settings, Strategy};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeSet;

/// Random choice from the likeliest tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits: below 1 likely tokens become likelier.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; all if 0 (Fan et al. 2018, arXiv:1805.04833, §5.3).
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; all if 1 (Holtzman et al.
    /// 2019, arXiv:1904.09751, §3.1).
    pub top_p: f32,
    /// Only tokens of at least this share of the probability of the likeliest one; all if 0 (Nguyen
    /// et al. 2024, arXiv:2407.01082, §3).
    pub min_p: f32,
    /// The same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    /// The distribution as it is.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

impl Sampling {
    /// A token drawn with the kept probabilities.
    fn draw(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        // The likeliest first; of equals the first one.
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            sorted.truncate(self.top_k);
        }
        let top = sorted.first().map_or(0.0, |(_, l)| *l);
        let temperature = f64::from(self.temperature.max(1e-6));
        let share = |l: f32| (f64::from(l - top) / temperature).exp();
        let mut shares: Vec<f64> = sorted.iter().map(|(_, l)| share(*l)).collect();
        let sum: f64 = shares.iter().sum();
        if self.top_p < 1.0 {
            let mut before = 0.0;
            let kept = shares.iter().take_while(|s| {
                let is_kept = before < f64::from(self.top_p);
                before += **s / sum;
                is_kept
            });
            let kept = kept.count().max(1);
            shares.truncate(kept);
        }
        // The likeliest token has a share of 1.
        let kept = shares.iter().take_while(|s| **s >= f64::from(self.min_p)).count().max(1);
        shares.truncate(kept);
        let unit = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut rest = unit * shares.iter().sum::<f64>();
        let at = shares.iter().position(|s| {
            rest -= s;
            rest < 0.0
        });
        sorted.get(at.unwrap_or(shares.len() - 1)).map_or(0, |(id, _)| *id)
    }
}

/// Chooses the tokens of one row.
pub(super) struct Chooser<'a> {
    settings: &'a Settings,
    said: BTreeSet<u32>,
    rng: ChaCha8Rng,
}

// A penalty of exactly 1 changes nothing.
#[allow(clippy::float_cmp)]
impl<'a> Chooser<'a> {
    /// For a row whose prompt has these ids.
    pub(super) fn new(settings: &'a Settings, prompt: &[u32]) -> Self {
        let seed = if let Strategy::Sample(s) = &settings.strategy { s.seed } else { 0 };
        let said = if settings.repetition_penalty == 1.0 {
            BTreeSet::new() // Nobody asks.
        } else {
            prompt.iter().copied().collect()
        };
        Self { settings, said, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next token, the `step`-th of the answer, from its logits.
    pub(super) fn next(&mut self, logits: &[f32], step: usize) -> u32 {
        let mut logits = logits.to_vec();
        adjust(&mut logits, self.settings, self.said.iter().copied(), step);
        let id = match &self.settings.strategy {
            Strategy::Sample(sampling) => sampling.draw(&logits, &mut self.rng),
            _ => likeliest(&logits),
        };
        if self.settings.repetition_penalty != 1.0 {
            self.said.insert(id);
        }
        id
    }
}

/// What every strategy does to scores first: the repetition penalty on ids that were `said`, and no
/// end before the fewest tokens.
// A penalty of exactly 1 changes nothing.
#[allow(clippy::float_cmp)]
pub(super) fn adjust(
    scores: &mut [f32],
    settings: &Settings,
    said: impl Iterator<Item = u32>,
    step: usize,
) {
    let penalty = settings.repetition_penalty;
    if penalty != 1.0 {
        for id in said {
            if let Some(score) = scores.get_mut(id as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
    }
    if step < settings.min_new_tokens {
        for id in &settings.eos {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let first = (0, f32::NEG_INFINITY);
    (0..).zip(logits).fold(first, |top, (id, l)| if *l > top.1 { (id, *l) } else { top }).0
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // Powers of two stay exact.
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, -2.0, 2.0, 0.0];

    fn drawn(sampling: &Sampling) -> BTreeSet<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        (0..2000).map(|_| sampling.draw(&LOGITS, &mut rng)).collect()
    }

    #[test]
    fn filters_keep_the_likeliest() {
        let all = Sampling::default();
        assert_eq!(drawn(&all).len(), 5);
        assert_eq!(drawn(&Sampling { top_k: 2, ..all.clone() }), BTreeSet::from([1, 3]));
        // Probabilities 0.64, 0.24, 0.09, ..
        assert_eq!(drawn(&Sampling { top_p: 0.6, ..all.clone() }), BTreeSet::from([1]));
        assert_eq!(drawn(&Sampling { top_p: 0.7, ..all.clone() }), BTreeSet::from([1, 3]));
        assert_eq!(drawn(&Sampling { min_p: 0.3, ..all.clone() }), BTreeSet::from([1, 3]));
        assert_eq!(drawn(&Sampling { temperature: 0.01, ..all }), BTreeSet::from([1]));
    }

    #[test]
    fn shares_are_those_of_the_softmax() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sampling = Sampling { temperature: 2.0, ..Sampling::default() };
        let draws = 20_000;
        let ones = (0..draws).filter(|_| sampling.draw(&LOGITS, &mut rng) == 1).count();
        let sum: f32 = LOGITS.iter().map(|l| (l / 2.0).exp()).sum();
        let share = 1.5_f32.exp() / sum;
        assert!((ones as f32 / draws as f32 - share).abs() < 0.02, "{ones} {share}");
    }

    #[test]
    fn what_was_said_is_less_likely_and_an_early_end_is_not_possible() {
        let settings =
            Settings { repetition_penalty: 2.0, min_new_tokens: 1, ..Settings::greedy(9, &[3]) };
        let mut scores = LOGITS;
        adjust(&mut scores, &settings, [1, 2].into_iter(), 0);
        assert_eq!(scores, [1.0, 1.5, -4.0, f32::NEG_INFINITY, 0.0]);
        let mut chooser = Chooser::new(&settings, &[1]);
        assert_eq!([0, 1, 2].map(|step| chooser.next(&LOGITS, step)), [1, 3, 1]);
    }
}
