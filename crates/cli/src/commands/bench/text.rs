//! A prompt through a language model, and one more token behind it.

use super::{Args, Task};
use crate::failure::Failure;
use ocelli_models::generate::{Cache, Rows};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::{Error, Model};
use ocelli_tensor::no_grad;

/// Tokens that are decoded at most before the text is cut back to the prompt.
const LONGEST: usize = 128;

/// What is timed.
pub(super) struct Step {
    model: Model,
    rows: Rows,
    /// With the prompt read, when decoding.
    past: Option<Cache>,
    tokens: usize,
    /// Where a text that grows is cut back to the prompt.
    longest: usize,
    /// A number that changes from run to run.
    turn: u32,
}

fn causal(model: &Model) -> Result<&dyn CausalModel, Error> {
    let (what, needs) = ("timing a text", "a language model without an encoder");
    model.causal().ok_or_else(|| Error::Unsuitable { what, needs, is: model.kind().to_owned() })
}

/// That the model writes.
pub(super) fn check(model: &Model) -> Result<(), Failure> {
    causal(model)?;
    Ok(())
}

impl Step {
    pub(super) fn new(args: &Args, model: Model) -> Result<Self, Failure> {
        let (batch, tokens) = (args.batch as usize, args.tokens as usize);
        let language = causal(&model)?;
        let decodes = args.task == Task::Decode;
        let needed = tokens + usize::from(decodes);
        let limit = language.context_length().unwrap_or(usize::MAX);
        if needed > limit {
            return Err(Failure::usage(format!(
                "{needed} tokens, the context has {limit}; lower --tokens"
            )));
        }
        let longest = limit.min(tokens + LONGEST);
        let mut step = Self {
            rows: rows(language, batch, tokens, 0)?,
            model,
            past: None,
            tokens,
            longest,
            turn: 1,
        };
        if decodes {
            let language = causal(&step.model)?;
            let mut past = language.new_cache(batch);
            past.reserve(longest);
            no_grad(|| language.advance(&step.rows, &mut past))?;
            (step.past, step.tokens) = (Some(past), 1);
        }
        Ok(step)
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn run(&mut self) -> Result<(), Failure> {
        let language = causal(&self.model)?;
        let batch = self.rows.lens.len();
        self.turn += 1;
        let Some(past) = &mut self.past else {
            let mut cache = language.new_cache(batch);
            cache.reserve(self.tokens);
            no_grad(|| language.advance(&self.rows, &mut cache))?;
            return Ok(());
        };
        let prompt = self.rows.lens[0];
        if past.lens()[0] >= self.longest {
            (0..batch).for_each(|row| past.truncate(row, prompt));
        }
        let one = rows(language, batch, 1, self.turn)?;
        no_grad(|| language.advance(&one, past))?;
        Ok(())
    }
}

/// Texts of arbitrary ids.
fn rows(language: &dyn CausalModel, batch: usize, tokens: usize, seed: u32) -> Result<Rows, Error> {
    let texts = (0..batch as u32).map(|text| {
        let id = |i: u32| (i + text + seed).wrapping_mul(7919) % 251;
        language.embed(&(0..tokens as u32).map(id).collect::<Vec<_>>())
    });
    Rows::join(&texts.collect::<Result<Vec<_>, _>>()?)
}
