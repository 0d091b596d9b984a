//! `ocelli viz mask`: which tokens see which, by the rules that the models themselves go by.

use super::grid::{Columns, Grid, document};
use crate::failure::Failure;
use crate::output::{Output, write_file};
use clap::Subcommand;
use ocelli_models::connector::gated_xattn::{sees, times};
use ocelli_models::connector::qformer::Objective;
use ocelli_models::language::chatglm::Asked;
use std::path::PathBuf;

/// Draw who sees whom: the attention mask of a text
///
/// Words stand for tokens. What is printed, and drawn in the file, is what the models go by.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli viz mask flamingo '<image>A cat.<|endofchunk|><image>A dog.<|endofchunk|>'
  ocelli viz mask q-former 'a cat on a mat' --queries 4 -o mask.svg
  ocelli viz mask chatglm 'What is it?' --answer 'A cat.'")]
pub(crate) struct Args {
    #[command(subcommand)]
    system: System,
    /// Write the drawing to this file as well
    #[arg(short, long, value_name = "FILE.svg", global = true)]
    output: Option<PathBuf>,
}

#[derive(Subcommand)]
enum System {
    /// Pictures among words: each word looks at the last picture before it
    Flamingo {
        /// Text with <image> in front of what belongs to a picture
        text: String,
        /// Words look at all pictures before them, and before the first at all alike
        #[arg(long)]
        all_previous: bool,
    },
    /// Queries and a text: contrastive learning, matching and text generation
    QFormer {
        text: String,
        /// Learned queries; published models have 32
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
        queries: u8,
    },
    /// A question that is read in both directions, and its answer
    #[command(name = "chatglm")]
    ChatGlm {
        question: String,
        #[arg(long, default_value = "")]
        answer: String,
    },
}

/// Tokens of a text at most: more could not be read off.
const MOST: usize = 100;
/// Marks that are tokens wherever they stand.
const MARKS: [&str; 2] = ["<image>", "<|endofchunk|>"];

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(file) = &args.output
        && !file.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg"))
    {
        return Err(Failure::usage(format!(
            "{}: drawings are written as SVG; name a file that ends with .svg",
            file.display()
        )));
    }
    let grids = match &args.system {
        System::Flamingo { text, all_previous } => vec![flamingo(tokens(text)?, *all_previous)],
        System::QFormer { text, queries } => q_former(&tokens(text)?, usize::from(*queries)),
        System::ChatGlm { question, answer } => vec![chatglm(tokens(question)?, tokens(answer)?)],
    };
    if grids.iter().any(|grid| grid.rows.is_empty()) {
        return Err(Failure::usage("no words to draw; give a text".to_owned()));
    }
    let mut out = Output::new();
    let printed: Vec<String> = grids.iter().map(Grid::printed).collect();
    out.text(&printed.join("\n"))?;
    out.flush()?;
    match &args.output {
        Some(file) => write_file(file, document(&grids).as_bytes()),
        None => Ok(()),
    }
}

/// The words and marks of a text.
fn tokens(text: &str) -> Result<Vec<String>, Failure> {
    let mut text = text.to_owned();
    for mark in MARKS {
        text = text.replace(mark, &format!(" {mark} "));
    }
    let tokens: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if tokens.len() > MOST {
        return Err(Failure::usage(format!(
            "a text of {} words; at most {MOST} can be drawn, give a shorter one",
            tokens.len()
        )));
    }
    Ok(tokens)
}

/// Alayrac et al. 2022, arXiv:2204.14198, §3.2.
fn flamingo(rows: Vec<String>, looks_back: bool) -> Grid {
    let times = times(rows.iter().map(|token| token == MARKS[0]));
    let pictures = times.last().copied().unwrap_or(0);
    let looking = |time: &u32| (1..=pictures).map(|p| sees(*time, p, looks_back)).collect();
    let all = rows.len();
    Grid {
        title: "Layers between the blocks look at pictures, the blocks at tokens".to_owned(),
        columns: vec![
            Columns::new("picture", times.iter().map(looking).collect()),
            Columns::new(
                "token",
                (0..all).map(|row| (0..all).map(|c| c <= row).collect()).collect(),
            ),
        ],
        rows,
    }
}

/// Li et al. 2023, arXiv:2301.12597, Figure 2.
fn q_former(text: &[String], queries: usize) -> Vec<Grid> {
    let objectives = [
        ("Image-text contrastive learning: queries and text apart", Objective::Contrastive),
        ("Image-text matching: everything sees everything", Objective::Matching),
        (
            "Image-grounded text generation: the text sees the queries and what is before it",
            Objective::Generation,
        ),
    ];
    let rows: Vec<String> =
        (1..=queries).map(|q| format!("query {q}")).chain(text.iter().cloned()).collect();
    let grid = |(title, objective): (&str, Objective)| {
        let seen = |row: usize| objective.seen(row, queries, text.len());
        let part = |from: usize, to: usize| {
            (0..rows.len()).map(|r| (from..to).map(|c| seen(r).contains(&c)).collect()).collect()
        };
        Grid {
            title: title.to_owned(),
            rows: rows.clone(),
            columns: vec![
                Columns::new("query", part(0, queries)),
                Columns::new("token", part(queries, rows.len())),
            ],
        }
    };
    objectives.map(grid).into()
}

/// Zeng et al. 2022, arXiv:2210.02414, §2.1.
fn chatglm(question: Vec<String>, answer: Vec<String>) -> Grid {
    let asked = Asked::prompt(question.len() + 2);
    let rows = [question, vec!["[gMASK]".to_owned(), "<sop>".to_owned()], answer].concat();
    let all = rows.len();
    let seen = |row: usize| (0..all).map(|c| c < asked.seen(row)).collect();
    Grid {
        title: "What is asked sees all that is asked, the answer all before it".to_owned(),
        columns: vec![Columns::new("token", (0..all).map(seen).collect())],
        rows,
    }
}
