//! `ocelli viz`: what a model does, drawn.

mod grid;
mod mask;

use crate::failure::Failure;
use clap::Subcommand;

/// Draw what happens inside a model
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Mask(mask::Args),
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Mask(args) => mask::run(args),
    }
}
