//! Flags that say how text is written.

use crate::failure::Failure;
use crate::interrupt;
use clap::Args;
use ocelli_models::generate::{Beams, EarlyStopping, Sampling, Settings, Strategy};

/// Most tokens of an answer that may be asked for.
const MOST_TOKENS: u64 = 1 << 20;

/// How text is written; what is not given is as the model or the command has it.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Writing")]
pub(crate) struct SamplingArgs {
    /// Tokens to write at most
    #[arg(short = 'n', long, value_name = "N",
        aliases = ["max_new_tokens", "n-predict", "max-tokens"],
        value_parser = clap::value_parser!(u64).range(1..=MOST_TOKENS))]
    max_new_tokens: Option<u64>,
    /// Tokens to write at least
    #[arg(long, value_name = "N", alias = "min_new_tokens",
        value_parser = clap::value_parser!(u64).range(0..=MOST_TOKENS))]
    min_new_tokens: Option<u64>,
    /// How freely tokens are drawn: 0 takes the likeliest, 1 draws as the model says
    #[arg(long, value_name = "T", alias = "temp", allow_negative_numbers = true,
        value_parser = number(0.0, 100.0))]
    temperature: Option<f32>,
    /// Draw from this many of the likeliest tokens
    #[arg(long, value_name = "K", alias = "top_k")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", alias = "top_p", allow_negative_numbers = true,
        value_parser = number(0.0, 1.0))]
    top_p: Option<f32>,
    /// Draw from tokens of at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", alias = "min_p", allow_negative_numbers = true,
        value_parser = number(0.0, 1.0))]
    min_p: Option<f32>,
    /// Seed of the draws; the same one gives the same text
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Make what was said less likely: above 1
    #[arg(long, value_name = "X", alias = "repetition_penalty", allow_negative_numbers = true,
        value_parser = number(0.01, 100.0))]
    repetition_penalty: Option<f32>,
    /// Search with this many texts side by side
    #[arg(long, value_name = "N", alias = "num_beams",
        value_parser = clap::value_parser!(u64).range(1..=256))]
    num_beams: Option<u64>,
    /// What long texts gain in a search: above 0
    #[arg(long, value_name = "X", alias = "length_penalty", allow_negative_numbers = true,
        value_parser = number(-100.0, 100.0))]
    length_penalty: Option<f32>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

/// A number within bounds.
fn number(
    least: f32,
    most: f32,
) -> impl Fn(&str) -> Result<f32, String> + Clone + Send + Sync + 'static {
    move |text| {
        text.parse()
            .ok()
            .filter(|n| (least..=most).contains(n))
            .ok_or_else(|| format!("expected a number from {least} to {most}"))
    }
}

impl SamplingArgs {
    /// Texts written side by side for each one that is asked for, and the tokens to write at most;
    /// `usual` where nothing is said.
    pub(crate) fn extent(&self, usual: usize) -> (usize, usize) {
        let tokens = self.max_new_tokens.map_or(usual, |n| n as usize);
        (self.num_beams.unwrap_or(1) as usize, tokens)
    }

    /// The settings: those of the command where nothing is said.
    pub(crate) fn settings(&self, usual: &Settings) -> Result<Settings, Failure> {
        let tokens = |given: Option<u64>, usual| given.map_or(usual, |n| n as usize);
        let max_new_tokens = tokens(self.max_new_tokens, usual.max_new_tokens);
        let min_new_tokens = tokens(self.min_new_tokens, usual.min_new_tokens);
        if min_new_tokens > max_new_tokens {
            return Err(Failure::usage(format!(
                "--min-new-tokens {min_new_tokens} is more than the {max_new_tokens} of \
                 --max-new-tokens; lower the first or raise the second"
            )));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Failure::usage("--stop \"\" would end every text before it begins"));
        }
        Ok(Settings {
            strategy: self.strategy(&usual.strategy)?,
            max_new_tokens,
            min_new_tokens,
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            interrupt: Some(interrupt::flag()),
            ..usual.clone()
        })
    }

    fn strategy(&self, usual: &Strategy) -> Result<Strategy, Failure> {
        // Asked for a choice, but for no draw: the draw of the model as it is.
        let choices = [
            ("--top-k", self.top_k.is_some()),
            ("--top-p", self.top_p.is_some()),
            ("--min-p", self.min_p.is_some()),
        ];
        let choice = choices.iter().find(|(_, is_given)| *is_given).map(|(flag, _)| *flag);
        let draws = match self.temperature {
            Some(t) => (t > 0.0).then_some("--temperature"),
            None => choice,
        };
        let beams = match (self.num_beams, usual) {
            (Some(1), _) => None,
            (Some(n), Strategy::Beam(beams)) => Some(Beams { width: n as usize, ..beams.clone() }),
            (Some(n), _) => Some(Beams {
                width: n as usize,
                length_penalty: 1.0,
                early_stopping: EarlyStopping::Heuristic,
            }),
            (None, Strategy::Beam(beams)) if draws.is_none() => Some(beams.clone()),
            _ => None,
        };
        if let Some(beams) = beams {
            let seed = self.seed.map(|_| "--seed");
            if let Some(flag) = draws.or(choice).or(seed) {
                let what = "a search with --num-beams draws no tokens; leave it out, or search with \
                            --num-beams 1";
                return Err(Failure::usage(format!("{flag}: {what}")));
            }
            let length_penalty = self.length_penalty.unwrap_or(beams.length_penalty);
            return Ok(Strategy::Beam(Beams { length_penalty, ..beams }));
        }
        if self.length_penalty.is_some() {
            let what =
                "--length-penalty weighs the texts of a search; add --num-beams, or leave it out";
            return Err(Failure::usage(what));
        }
        let plain = Sampling { temperature: 0.0, ..Sampling::default() };
        let usual = if let Strategy::Sample(sampling) = usual { sampling } else { &plain };
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            seed: self.seed.unwrap_or(usual.seed),
        };
        if sampling.temperature > 0.0 {
            return Ok(Strategy::Sample(sampling));
        }
        match draws {
            Some(_) => Ok(Strategy::Sample(Sampling { temperature: 1.0, ..sampling })),
            None => Ok(Strategy::Greedy),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;

    #[test]
    fn flags_choose_the_strategy() {
        let usual = Settings::greedy(20, &[2]);
        let of = |args: SamplingArgs| args.settings(&usual).map(|s| s.strategy);
        let none = SamplingArgs::default;
        assert_eq!(of(none()).unwrap(), Strategy::Greedy);
        assert_eq!(
            of(SamplingArgs { temperature: Some(0.5), seed: Some(3), ..none() }).unwrap(),
            Strategy::Sample(Sampling { temperature: 0.5, seed: 3, ..Sampling::default() })
        );
        assert_eq!(
            of(SamplingArgs { top_p: Some(0.9), ..none() }).unwrap(),
            Strategy::Sample(Sampling { top_p: 0.9, ..Sampling::default() })
        );
        let zero = SamplingArgs { temperature: Some(0.0), top_k: Some(4), ..none() };
        assert_eq!(of(zero).unwrap(), Strategy::Greedy);
        let beams = SamplingArgs { num_beams: Some(4), length_penalty: Some(2.0), ..none() };
        let early_stopping = EarlyStopping::Heuristic;
        assert_eq!(
            of(beams).unwrap(),
            Strategy::Beam(Beams { width: 4, length_penalty: 2.0, early_stopping })
        );
        for both in [
            SamplingArgs { temperature: Some(1.0), ..none() },
            SamplingArgs { top_p: Some(0.9), ..none() },
            SamplingArgs { seed: Some(1), ..none() },
        ] {
            assert!(of(SamplingArgs { num_beams: Some(4), ..both }).is_err());
        }
        assert!(of(SamplingArgs { length_penalty: Some(2.0), ..none() }).is_err());
        let least = SamplingArgs { min_new_tokens: Some(21), ..none() };
        assert!(of(least).is_err());
    }

    #[test]
    fn a_model_that_searches_goes_on_searching() {
        let early_stopping = EarlyStopping::Always;
        let beams = Beams { width: 5, length_penalty: -1.0, early_stopping };
        let usual = Settings { strategy: Strategy::Beam(beams), ..Settings::greedy(20, &[2]) };
        let of = |args: SamplingArgs| args.settings(&usual).unwrap().strategy;
        assert_eq!(of(SamplingArgs::default()), usual.strategy);
        let one = SamplingArgs { num_beams: Some(1), ..SamplingArgs::default() };
        assert_eq!(of(one), Strategy::Greedy);
        let drawn = SamplingArgs { temperature: Some(1.0), ..SamplingArgs::default() };
        assert_eq!(of(drawn), Strategy::Sample(Sampling::default()));
        let chosen = SamplingArgs { top_p: Some(0.9), seed: Some(1), ..SamplingArgs::default() };
        let wanted = Sampling { top_p: 0.9, seed: 1, ..Sampling::default() };
        assert_eq!(of(chosen), Strategy::Sample(wanted));
    }
}
