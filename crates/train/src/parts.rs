//! The parts of a model, what of them learns and how fast: one table before step 1.

use crate::config::{FreezeConfig, Frozen, LrScale, OptimConfig};
use crate::optimiser::Rule;
use crate::{Error, Result};
use ocelli_nn::{Parameter, Parameters};
use std::fmt;

/// A part of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The vision tower.
    Vision,
    /// The text tower.
    Text,
    /// What is on top: the classifier, the temperature.
    Head,
}

impl Part {
    const ALL: [Self; 3] = [Self::Vision, Self::Text, Self::Head];

    /// The part that a parameter belongs to. Systems name their parts first; a lone ViT is all
    /// vision but its classifier, a hybrid as well.
    pub fn of(parameter: &Parameter) -> Self {
        let name = parameter.name();
        if name.starts_with("text.") {
            Self::Text
        } else if name.starts_with("head.")
            || name.starts_with("vit.head.")
            || name == "logit_scale"
        {
            Self::Head
        } else {
            Self::Vision
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Text => "text",
            Self::Head => "head",
        }
    }

    fn lr_scale(self, scales: &LrScale) -> f64 {
        match self {
            Self::Vision => scales.vision,
            Self::Text => scales.text,
            Self::Head => scales.head,
        }
    }
}

/// Freezes what `freeze` says, and gives the rules of everything that learns.
///
/// Weight decay is for weights: gains, biases, the temperature and all else of fewer than two axes
/// are left out (Radford et al. 2021, arXiv:2103.00020, §2.5).
///
/// # Errors
/// [`Error::Unfit`] if the last blocks of a tower without blocks are to learn, or nothing learns.
pub fn rules(
    parameters: &Parameters,
    freeze: &FreezeConfig,
    optim: &OptimConfig,
) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for parameter in parameters.iter().filter(|p| !p.is_buffer()) {
        let part = Part::of(parameter);
        let frozen = match part {
            Part::Vision => freeze.vision,
            Part::Text => freeze.text.unwrap_or(Frozen::None),
            Part::Head => Frozen::None,
        };
        let learns = match frozen {
            Frozen::None => true,
            Frozen::All => false,
            Frozen::ExceptLast(blocks) => is_among_last(parameters, parameter, part, blocks)?,
        };
        parameter.set_trainable(learns);
        if learns {
            rules.push(Rule {
                parameter: parameter.clone(),
                lr_scale: part.lr_scale(&optim.lr_scale),
                decays: parameter.shape().len() >= 2,
            });
        }
    }
    if rules.is_empty() {
        let problem = "nothing is left to learn; free a part".to_owned();
        return Err(Error::Unfit { key: "freeze", problem });
    }
    Ok(rules)
}

/// Whether the parameter is in the last `blocks` blocks of its tower or behind them.
fn is_among_last(
    all: &Parameters,
    parameter: &Parameter,
    part: Part,
    blocks: usize,
) -> Result<bool> {
    let block_of = |p: &Parameter| {
        let rest = p.name().split_once("blocks.")?.1;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    let of_tower = all.iter().filter(|p| Part::of(p) == part);
    let Some(last) = of_tower.filter_map(block_of).max() else {
        let problem = "except_last needs a tower of blocks; use \"none\" or \"all\"".to_owned();
        return Err(Error::Unfit { key: "freeze", problem });
    };
    Ok(match block_of(parameter) {
        Some(block) => block + blocks > last,
        None => {
            let name = parameter.name();
            let behind = ["norm.", "norm_post.", "projection."];
            let is_behind = |b: &&str| name.starts_with(*b) || name.contains(&format!(".{b}"));
            !name.starts_with("backbone.") && behind.iter().any(is_behind)
        }
    })
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartRow {
    name: &'static str,
    parameters: usize,
    learning: usize,
    decaying: usize,
    lr: f64,
}

/// Parts, parameters, what of them learns, with which learning rate.
#[derive(Clone, Debug, PartialEq)]
pub struct PartTable(Vec<PartRow>);

impl PartTable {
    /// Of a model with the rules of what learns.
    pub fn new(parameters: &Parameters, rules: &[Rule], optim: &OptimConfig) -> Self {
        let rows = Part::ALL.into_iter().map(|part| {
            let all = parameters.iter().filter(|p| !p.is_buffer() && Part::of(p) == part);
            let own = || rules.iter().filter(|r| Part::of(&r.parameter) == part);
            let learning = own().map(|r| r.parameter.elements()).sum();
            PartRow {
                name: part.name(),
                parameters: all.map(Parameter::elements).sum(),
                learning,
                decaying: own().filter(|r| r.decays).map(|r| r.parameter.elements()).sum(),
                lr: if learning == 0 { 0.0 } else { optim.lr * part.lr_scale(&optim.lr_scale) },
            }
        });
        Self(rows.filter(|row| row.parameters > 0).collect())
    }

    /// Values that learn.
    pub fn learning(&self) -> usize {
        self.0.iter().map(|row| row.learning).sum()
    }

    /// All values.
    pub fn parameters(&self) -> usize {
        self.0.iter().map(|row| row.parameters).sum()
    }
}

impl fmt::Display for PartTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:>13} {:>13} {:>13} {:>9}",
            "part", "parameters", "trainable", "decayed", "lr"
        )?;
        let mut row = |name: &str, values: [usize; 3], lr: &str| {
            let [all, learning, decaying] = values.map(with_commas);
            writeln!(f, "{name:<8} {all:>13} {learning:>13} {decaying:>13} {lr:>9}")
        };
        for r in &self.0 {
            let lr = if r.learning == 0 { "frozen".to_owned() } else { format!("{:.1e}", r.lr) };
            row(r.name, [r.parameters, r.learning, r.decaying], &lr)?;
        }
        let decaying = self.0.iter().map(|r| r.decaying).sum();
        row("all", [self.parameters(), self.learning(), decaying], "")
    }
}

/// 1234567 as 1,234,567.
pub(crate) fn with_commas(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use ocelli_nn::{Builder, Init};

    fn model() -> Parameters {
        let b = Builder::random(1);
        for (name, shape) in [
            ("vision.patch.weight", vec![4, 3]),
            ("vision.blocks.0.norm1.weight", vec![4]),
            ("vision.blocks.1.mlp.up.weight", vec![8, 4]),
            ("vision.norm_post.weight", vec![4]),
            ("vision.projection.weight", vec![2, 4]),
            ("text.token.weight", vec![10, 4]),
            ("logit_scale", vec![]),
        ] {
            b.parameter(name, &shape, Init::Constant(0.0));
        }
        b.finish().unwrap()
    }

    fn learning(vision: Frozen, text: Frozen) -> Vec<String> {
        let freeze = FreezeConfig { vision, text: Some(text) };
        let rules = rules(&model(), &freeze, &OptimConfig::default()).unwrap();
        rules.iter().map(|r| r.parameter.name().to_owned()).collect()
    }

    #[test]
    fn frozen_parts_do_not_learn() {
        assert_eq!(learning(Frozen::None, Frozen::None).len(), 7);
        assert_eq!(learning(Frozen::All, Frozen::None), ["text.token.weight", "logit_scale"]);
        assert_eq!(
            learning(Frozen::ExceptLast(1), Frozen::All),
            [
                "vision.blocks.1.mlp.up.weight",
                "vision.norm_post.weight",
                "vision.projection.weight",
                "logit_scale"
            ]
        );
        let only = ["vision.norm_post.weight", "vision.projection.weight", "logit_scale"];
        assert_eq!(learning(Frozen::ExceptLast(0), Frozen::All), only);
    }

    #[test]
    fn the_table_counts_and_vectors_do_not_decay() {
        let parameters = model();
        let freeze = FreezeConfig { vision: Frozen::None, text: Some(Frozen::All) };
        let optim = OptimConfig {
            lr: 1e-3,
            lr_scale: LrScale { vision: 0.1, ..LrScale::default() },
            ..OptimConfig::default()
        };
        let rules = rules(&parameters, &freeze, &optim).unwrap();
        let table = PartTable::new(&parameters, &rules, &optim);
        assert_eq!((table.parameters(), table.learning()), (101, 61));
        let text = table.to_string();
        assert!(
            text.contains("vision              60            60            52    1.0e-4"),
            "{text}"
        );
        assert!(
            text.contains("text                40             0             0    frozen"),
            "{text}"
        );
        assert_eq!(with_commas(1_234_567), "1,234,567");
    }
}
