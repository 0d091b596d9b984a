//! The `ocelli` binary: parses arguments, calls the library crates, prints.
// Comments on arguments are the help that people read; text for people is not written in hot loops.
#![allow(clippy::doc_markdown, clippy::format_push_string)]
// Doc comments of arguments are help texts, where brackets mean options and <image> is a mark.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

mod boxes;
mod commands;
mod failure;
mod global;
mod inputs;
mod interrupt;
mod labels;
mod markdown;
mod memory;
mod nearest;
mod output;
mod pictures;
mod progress;
mod published;
mod reader;
mod retrieval;
mod rows_file;
mod sampling;
mod session;
mod shapes;
mod shots;
mod table;
mod template;
mod texts;
mod unread;
mod vectors;
mod videos;
mod written;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use global::Global;
use std::ffi::OsString;
use std::process::ExitCode;

/// Vision-language models in one binary
#[derive(Parser)]
#[command(
    name = "ocelli",
    version,
    about,
    max_term_width = 100,
    after_help = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 invalid input, 4 model not found or not loadable,
5 not enough memory, 130 interrupted. Results go to standard output, everything else to standard error."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Classify(commands::classify::Args),
    Embed(commands::embed::Args),
    Match(commands::match_texts::Args),
    Caption(commands::caption::Args),
    Vqa(commands::vqa::Args),
    Compose(commands::compose::Args),
    Generate(commands::generate::Args),
    Run(commands::run::Args),
    Preprocess(commands::preprocess::Args),
    Tokenize(commands::tokenize::Args),
    Model(commands::model::Args),
    Train(commands::train::Args),
    Viz(commands::viz::Args),
    Verify(commands::verify::Args),
    Bench(commands::bench::Args),
    Doctor(commands::doctor::Args),
    Completions(commands::completions::Args),
}

/// Reads the arguments. `-q` is the question of `vqa`, and everywhere else `--quiet`.
fn parse(arguments: &[OsString]) -> Cli {
    let mut command = Cli::command();
    let name = |a: &OsString| command.find_subcommand(a).map(|c| c.get_name().to_owned());
    if arguments.iter().skip(1).find_map(name).is_some_and(|name| name == "vqa") {
        command = command
            .mut_arg("quiet", |quiet| quiet.short(None))
            .mut_subcommand("vqa", |vqa| vqa.mut_arg("question", |q| q.short('q')));
    }
    let mut matches = command.clone().get_matches_from(arguments);
    Cli::from_arg_matches_mut(&mut matches).unwrap_or_else(|e| e.format(&mut command).exit())
}

fn main() -> ExitCode {
    // llama.cpp spells --model of a hub id `-hf`, which is not a short flag.
    let arguments = std::env::args_os().map(|a| if a == "-hf" { "--model".into() } else { a });
    let Cli { global, command } = parse(&arguments.collect::<Vec<OsString>>());
    if let Err(failure) = global::check_environment() {
        return failure.report();
    }
    if let Some(threads) = global.threads {
        ocelli_kernels::pool::set_threads(usize::from(threads));
    }
    let done = match command {
        Command::Classify(args) => commands::classify::run(&global, &args),
        Command::Embed(args) => commands::embed::run(&global, &args),
        Command::Match(args) => commands::match_texts::run(&global, &args),
        Command::Caption(args) => commands::caption::run(&global, &args),
        Command::Vqa(args) => commands::vqa::run(&global, &args),
        Command::Compose(args) => commands::compose::run(&global, &args),
        Command::Generate(args) => commands::generate::run(&global, &args),
        Command::Run(args) => commands::run::run(&global, &args),
        Command::Preprocess(args) => commands::preprocess::run(&global, &args),
        Command::Tokenize(args) => commands::tokenize::run(&global, &args),
        Command::Model(args) => commands::model::run(&global, &args),
        Command::Train(args) => commands::train::run(&global, &args),
        Command::Viz(args) => commands::viz::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Bench(args) => commands::bench::run(&global, &args),
        Command::Doctor(args) => commands::doctor::run(&global, &args),
        Command::Completions(args) => commands::completions::run(Cli::command(), &args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
