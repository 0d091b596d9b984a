//! `ocelli model`: what models are and which ones there are.

mod info;
mod list;
mod quantize;
mod shorten;

use crate::failure::Failure;
use crate::global::Global;
use clap::Subcommand;

/// Look at models
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Info(info::Args),
    List(list::Args),
    Quantize(quantize::Args),
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Info(args) => info::run(global, args),
        Verb::List(args) => list::run(args),
        Verb::Quantize(args) => quantize::run(global, args),
    }
}
