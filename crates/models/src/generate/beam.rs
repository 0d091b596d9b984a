//! Beam search: several continuations grow side by side, and the likeliest finished one wins.
//!
//! The bookkeeping is that of the reference of the golden cases (transformers 5): twice as many
//! candidates as beams (more with several end tokens), an end counts only among the first `width` of
//! them, and finished texts compete by their log-probability per length to the power of the length
//! penalty (Wu et al. 2016, arXiv:1609.08144, §7, in its simple form).

use super::choose::adjust;
use super::{Answer, Cache, Decoder, Finish, Prompt, Rows, Settings};
use crate::Result;
use std::sync::atomic::Ordering;

/// A beam search.
#[derive(Clone, Debug, PartialEq)]
pub struct Beams {
    /// Texts that grow side by side.
    pub width: usize,
    /// Power of the length that log-probabilities are divided by: above 0 long texts gain.
    pub length_penalty: f32,
    /// When to stop looking for a better text.
    pub early_stopping: EarlyStopping,
}

/// When a beam search ends before the most tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When as many texts as beams are finished.
    Always,
    /// When the best running text could not win if it ended at once.
    Heuristic,
    /// When no running text could win at any length.
    Never,
}

/// A text that grows.
#[derive(Clone, Debug)]
struct Beam {
    ids: Vec<u32>,
    /// Sum of log-probabilities.
    score: f32,
}

/// A candidate for the next step.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    beam: usize,
    id: u32,
    score: f32,
    ends: bool,
}

/// A text that ended, with its score per length.
#[derive(Clone, Debug)]
struct Ended {
    ids: Vec<u32>,
    score: f32,
}

/// Continues one prompt; `cache` has one row.
pub(super) fn search(
    decoder: &dyn Decoder,
    prompt: &Prompt,
    mut cache: Cache,
    settings: &Settings,
    beams: &Beams,
    room: usize,
) -> Result<Answer> {
    let width = beams.width.max(1);
    let candidates = (1 + settings.eos.len()).max(2) * width;
    let mut running = vec![Beam { ids: Vec::new(), score: 0.0 }];
    let mut ended: Vec<Ended> = Vec::new();
    let mut rows = Rows::join(std::slice::from_ref(&prompt.embeddings))?;
    for step in 0..room {
        let logits = decoder.advance(&rows, &mut cache)?; // [running, vocab]
        let vocab = logits.shape().last_axis();
        let mut all = Vec::with_capacity(logits.elements());
        for (beam, (text, logits)) in
            running.iter().zip(logits.values().chunks_exact(vocab)).enumerate()
        {
            let mut scores = log_softmax(logits);
            let mut said: Vec<u32> = prompt.ids.iter().chain(&text.ids).copied().collect();
            said.sort_unstable();
            said.dedup();
            adjust(&mut scores, settings, said.into_iter(), step);
            all.extend((0..).zip(scores).map(|(id, score)| {
                let ends = settings.eos.contains(&id) || step + 1 == room;
                Candidate { beam, id, score: score + text.score, ends }
            }));
        }
        best_first(&mut all, candidates);
        let ids_of = |c: &Candidate| {
            let mut ids = running[c.beam].ids.clone();
            ids.push(c.id);
            ids
        };
        let per_length = |score: f32, len: usize| score / (len as f32).powf(beams.length_penalty);
        if !(beams.early_stopping == EarlyStopping::Always && ended.len() >= width) {
            let new = all.iter().take(width).filter(|c| c.ends);
            ended.extend(
                new.map(|c| Ended { ids: ids_of(c), score: per_length(c.score, step + 1) }),
            );
            ended.sort_by(|a, b| b.score.total_cmp(&a.score));
            ended.truncate(width);
        }
        let going: Vec<Candidate> = all.iter().filter(|c| !c.ends).take(width).copied().collect();
        let Some(best) = going.first() else { break };
        if ended.len() >= width {
            let len = match beams.early_stopping {
                EarlyStopping::Always => break,
                EarlyStopping::Never if beams.length_penalty > 0.0 => room,
                _ => step + 1,
            };
            if ended.last().is_some_and(|worst| per_length(best.score, len) <= worst.score) {
                break;
            }
        }
        if settings.interrupt.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            // What grows best so far is better than nothing.
            ended.push(Ended { ids: ids_of(best), score: best.score });
            break;
        }
        cache.select(&going.iter().map(|c| c.beam).collect::<Vec<_>>());
        let next: Vec<u32> = going.iter().map(|c| c.id).collect();
        running = going.iter().map(|c| Beam { ids: ids_of(c), score: c.score }).collect();
        let embeddings = decoder.embed(&next)?;
        let embeddings = embeddings.reshape(&[next.len(), 1, embeddings.shape().last_axis()])?;
        rows = Rows { embeddings, lens: vec![1; next.len()] };
    }
    let ids = ended.into_iter().next().map(|e| e.ids).unwrap_or_default();
    let is_eos = ids.last().is_some_and(|id| settings.eos.contains(id));
    Ok(Answer { ids, finish: if is_eos { Finish::Eos } else { Finish::Length } })
}

/// Keeps the `n` best, best first; of equals the one of the first beam and the smallest id.
fn best_first(all: &mut Vec<Candidate>, n: usize) {
    let order = |a: &Candidate, b: &Candidate| {
        b.score.total_cmp(&a.score).then(a.beam.cmp(&b.beam)).then(a.id.cmp(&b.id))
    };
    if n < all.len() {
        all.select_nth_unstable_by(n, order);
        all.truncate(n);
    }
    all.sort_by(order);
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let log_sum = sum.ln() as f32;
    logits.iter().map(|l| l - max - log_sum).collect()
}
