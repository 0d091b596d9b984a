//! The `ocelli` binary: parses arguments, calls the library crates, prints.

mod commands;
mod failure;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Vision-language models in one binary.
#[derive(Parser)]
#[command(name = "ocelli", version, about, max_term_width = 100)]
struct Cli {
    /// Threads that compute; default: one per core, or OCELLI_THREADS
    #[arg(short = 't', long, global = true, value_name = "N")]
    threads: Option<usize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Verify(commands::verify::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(threads) = cli.threads {
        ocelli_kernels::pool::set_threads(threads);
    }
    let done = match cli.command {
        Command::Verify(args) => commands::verify::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
