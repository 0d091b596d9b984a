//! Writing text: a decoder is asked for one token after the other.
//!
//! A [`Decoder`] turns new tokens into logits and keeps what it needs of the old ones in a
//! [`Cache`]. [`generate`] is the same for all of them: prompts of different lengths go through in
//! one pass, then tokens are chosen by [`Strategy`] until each row has ended. A row's result depends
//! neither on the other rows nor on whether the tokens before it came one by one.

mod beam;
mod cache;
mod choose;

pub use beam::{Beams, EarlyStopping};
pub use cache::{BlockCache, Cache, Rows};
pub use choose::Sampling;

use crate::{Error, Result};
use choose::Chooser;
use ocelli_tensor::{Tensor, no_grad};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A language model that continues text.
pub trait Decoder {
    /// Tokens that a row may have, or `None` if positions have no limit.
    fn context_length(&self) -> Option<usize>;

    /// Embeddings of ids, `[ids, width]`, before positions are added.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    fn embed(&self, ids: &[u32]) -> Result<Tensor>;

    /// Takes up the pictures that are shown with prompts, one row of the cache each, in place of those
    /// that were shown before. Only for models that look at pictures aside from the text.
    ///
    /// # Errors
    /// If shapes do not fit the model.
    fn show(&self, prompts: &[Prompt], cache: &mut Cache) -> Result<()> {
        let _ = (prompts, cache);
        Ok(())
    }

    /// Reads new tokens behind those of the cache, which they join. Gives the logits after the last
    /// one of each row, `[batch, vocab]`.
    ///
    /// # Errors
    /// If shapes do not fit the model.
    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor>;
}

/// What a row begins with.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// `[tokens, width]`, pictures included.
    pub embeddings: Tensor,
    /// The ids among them, which the repetition penalty counts as said.
    pub ids: Vec<u32>,
    /// How many of the tokens come from pictures; for messages.
    pub image_tokens: usize,
    /// What the model looks at aside from the text, each with the token of the row from which on it
    /// does; see [`Decoder::show`].
    pub shown: Vec<(usize, Tensor)>,
}

impl Prompt {
    /// Text alone.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn text(decoder: &dyn Decoder, ids: &[u32]) -> Result<Self> {
        let embeddings = decoder.embed(ids)?;
        Ok(Self { embeddings, ids: ids.to_vec(), image_tokens: 0, shown: Vec::new() })
    }
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// The likeliest token.
    Greedy,
    /// A random one.
    Sample(Sampling),
    /// The likeliest text among several that grow side by side.
    Beam(Beams),
}

/// When and how to go on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How tokens are chosen.
    pub strategy: Strategy,
    /// Tokens of an answer at most; fewer if the context ends.
    pub max_new_tokens: usize,
    /// Tokens before an answer may end.
    pub min_new_tokens: usize,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Logits of tokens that were said are divided by it, or multiplied where they are negative
    /// (Keskar et al. 2019, arXiv:1909.05858, §4.1); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Ends a beam search after the step in which it is raised; other strategies ask for each token.
    pub interrupt: Option<Arc<AtomicBool>>,
}

impl Settings {
    /// Greedy, up to `max_new_tokens`, ended by any of `eos`.
    pub fn greedy(max_new_tokens: usize, eos: &[u32]) -> Self {
        Self {
            strategy: Strategy::Greedy,
            max_new_tokens,
            min_new_tokens: 0,
            eos: eos.to_vec(),
            repetition_penalty: 1.0,
            interrupt: None,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// By a token that ends answers.
    Eos,
    /// By the most tokens allowed, or by the end of the context.
    Length,
    /// By the caller.
    Stopped,
}

/// What was written behind a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The new tokens, with the one that ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Whether the caller wants more of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End the row here.
    Stop,
}

/// Continues each prompt. `cache` holds what the decoder has read before (a chat so far, or the
/// memory of an encoder), one row per prompt; afterwards it holds all but the last token of each
/// answer, unless beams were searched, which leave it as it was. `on_token` is told of each new
/// token with the index of its prompt; a beam search tells all of an answer at its end.
///
/// # Errors
/// If a prompt is empty or does not fit into the context, or shapes do not fit the model.
pub fn generate(
    decoder: &dyn Decoder,
    prompts: &[Prompt],
    cache: &mut Cache,
    settings: &Settings,
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Vec<Answer>> {
    let past = cache.lens();
    if past.len() != prompts.len() || prompts.is_empty() {
        let (what, needs) = ("writing", "a cache with one row for each prompt");
        let is = format!("given {} rows for {} prompts", past.len(), prompts.len());
        return Err(Error::Unsuitable { what, needs, is });
    }
    let mut rooms = Vec::with_capacity(prompts.len());
    for (index, (prompt, past)) in prompts.iter().zip(&past).enumerate() {
        if prompt.embeddings.shape().rows() == 0 {
            return Err(Error::EmptyPrompt { index });
        }
        rooms.push(room(decoder, prompt, *past)?.min(settings.max_new_tokens));
    }
    no_grad(|| decoder.show(prompts, cache))?;
    no_grad(|| match &settings.strategy {
        Strategy::Beam(beams) => {
            let mut answers = Vec::with_capacity(prompts.len());
            for (row, prompt) in prompts.iter().enumerate() {
                let own = cache.row(row);
                let mut answer = beam::search(decoder, prompt, own, settings, beams, rooms[row])?;
                let stop = answer.ids.iter().position(|id| on_token(row, *id) == Flow::Stop);
                if let Some(last) = stop.filter(|last| last + 1 < answer.ids.len()) {
                    answer.ids.truncate(last + 1);
                    answer.finish = Finish::Stopped;
                }
                answers.push(answer);
            }
            Ok(answers)
        }
        _ => token_by_token(decoder, prompts, cache, settings, &rooms, on_token),
    })
}

/// Tokens of an answer that there is room for from the start; longer ones get more as they grow.
const RESERVED: usize = 512;

/// Tokens that fit behind a prompt.
fn room(decoder: &dyn Decoder, prompt: &Prompt, past: usize) -> Result<usize> {
    let Some(limit) = decoder.context_length() else { return Ok(usize::MAX) };
    let tokens = past + prompt.embeddings.shape().rows();
    // The last token of an answer is never read, so it needs no place.
    match (limit + 1).checked_sub(tokens) {
        Some(room) if room > 0 => Ok(room),
        _ => {
            let image_tokens = prompt.image_tokens;
            Err(Error::ContextOverflow { limit, tokens, image_tokens })
        }
    }
}

/// Answers by choosing each token as it comes.
fn token_by_token(
    decoder: &dyn Decoder,
    prompts: &[Prompt],
    cache: &mut Cache,
    settings: &Settings,
    rooms: &[usize],
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Vec<Answer>> {
    let mut answers = vec![Answer { ids: Vec::new(), finish: Finish::Length }; prompts.len()];
    if settings.max_new_tokens == 0 {
        return Ok(answers);
    }
    let mut choosers: Vec<Chooser> =
        prompts.iter().map(|p| Chooser::new(settings, &p.ids)).collect();
    // Prompts whose rows are still at work, in the order of their rows.
    let mut live: Vec<usize> = (0..prompts.len()).collect();
    let mut ended: Vec<(usize, Cache)> = Vec::new();
    let mut working = std::mem::replace(cache, Cache::new(Vec::new()));
    working.reserve(longest(prompts) + rooms.iter().copied().max().unwrap_or(0).min(RESERVED));
    let embeddings: Vec<Tensor> = prompts.iter().map(|p| p.embeddings.clone()).collect();
    let mut rows = Rows::join(&embeddings)?;
    loop {
        let logits = decoder.advance(&rows, &mut working)?; // [live, vocab]
        let vocab = logits.shape().last_axis();
        let (mut kept, mut next) = (Vec::new(), Vec::new());
        for (row, (&i, logits)) in live.iter().zip(logits.values().chunks_exact(vocab)).enumerate()
        {
            let answer = &mut answers[i];
            let id = choosers[i].next(logits, answer.ids.len());
            answer.ids.push(id);
            let flow = on_token(i, id);
            if settings.eos.contains(&id) {
                answer.finish = Finish::Eos;
            } else if flow == Flow::Stop {
                answer.finish = Finish::Stopped;
            } else if answer.ids.len() < rooms[i] {
                kept.push(row);
                next.push(id);
                continue;
            }
            ended.push((i, working.row(row)));
        }
        if kept.is_empty() {
            break;
        }
        if kept.len() < live.len() {
            working.select(&kept);
            live = kept.iter().map(|row| live[*row]).collect();
        }
        let width = rows.embeddings.shape().last_axis();
        let embeddings = decoder.embed(&next)?.reshape(&[next.len(), 1, width])?;
        rows = Rows { embeddings, lens: vec![1; next.len()] };
    }
    drop(working);
    ended.sort_by_key(|(i, _)| *i);
    *cache = Cache::join(ended.into_iter().map(|(_, row)| row));
    Ok(answers)
}

fn longest(prompts: &[Prompt]) -> usize {
    prompts.iter().map(|p| p.embeddings.shape().rows()).max().unwrap_or(0)
}
