//! What a model takes in memory, counted from the shapes of its parameters before any is read.

use super::Model;
use crate::generate::Cache;
use crate::systems::talker::Talker;
use ocelli_nn::{Parameter, Parameters};

/// Copies of the widest layer's inputs and outputs that a block holds at a time: the residual, what
/// the norm gives, queries, keys and values, and the hidden layer with its gate.
const HELD: u64 = 3;

/// What is to be done at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Pictures seen.
    pub pictures: usize,
    /// Texts side by side.
    pub texts: usize,
    /// Tokens that are read of each at once, pictures left out.
    pub read: usize,
    /// Tokens that are written to each one by one.
    pub written: usize,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Of the weights that stay as they are, such as tables and norms.
    pub weights: u64,
    /// Of linear layers' weights in the order of the kernels, which is all that stays of them.
    pub packed: u64,
    /// Of the keys and values of all tokens.
    pub cache: u64,
    /// Of what passes between the layers, an estimate.
    pub passing: u64,
}

impl Need {
    /// What a model needs for some work.
    pub fn of(model: &Model, parameters: &Parameters, work: Work) -> Self {
        let bytes = |p: &Parameter| p.bytes();
        let of_vision = |p: &&Parameter| p.name().starts_with("vision.");
        let linear = || parameters.iter().filter(|p| p.is_linear());
        let widest = |parameters: &mut dyn Iterator<Item = &Parameter>| {
            let width = |p: &Parameter| p.shape().iter().sum::<usize>() as u64;
            // A head writes one row a text, not one a token.
            let inner = parameters.filter(|p| !p.name().contains("head"));
            HELD * size_of::<f32>() as u64 * inner.map(width).max().unwrap_or(0)
        };
        let seen = widest(&mut linear().filter(of_vision)) * picture_tokens(parameters) as u64;
        let read = widest(&mut linear().filter(|p| !of_vision(p)));
        // Those who talk read each picture as tokens, at most as many as the tower gives.
        let shown = if model.talker().is_some() { work.pictures } else { 0 };
        let shown = shown * picture_tokens(parameters);
        let at_once = (work.texts * work.read + shown) as u64;
        let tokens = at_once + (work.texts * work.written) as u64;
        Self {
            weights: parameters.iter().filter(|p| !p.is_linear()).map(bytes).sum(),
            packed: linear().map(Parameter::packed_bytes).sum(),
            cache: model.token_bytes() as u64 * tokens,
            passing: (seen * work.pictures as u64).max(read * at_once),
        }
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.weights + self.packed + self.cache + self.passing
    }
}

impl Model {
    /// Bytes that its language model keeps of each token; 0 if it keeps none.
    pub fn token_bytes(&self) -> usize {
        let language = self.talker().map(Talker::language).or(self.causal());
        let cache: Option<Cache> = language.map(|language| language.new_cache(1));
        cache.map_or(0, |cache| cache.token_bytes())
    }
}

/// Tokens of a picture in the tower, by its table of positions; 0 if there is none.
fn picture_tokens(parameters: &Parameters) -> usize {
    let table = |p: &Parameter| {
        let shape = p.shape();
        let is_table = p.name().starts_with("vision.") && p.name().contains("position");
        if is_table && shape.len() > 1 { Some(shape[shape.len() - 2]) } else { None }
    };
    parameters.iter().find_map(table).unwrap_or(0)
}
