//! Flags that every command takes, and what follows from them.

use crate::failure::Failure;
use crate::memory;
use clap::Args;
use ocelli_kernels::Isa;
use std::io::{IsTerminal, stderr, stdout};
use std::path::PathBuf;

/// Most threads that may be asked for.
const MOST_THREADS: u16 = 1024;

/// Memory that a model may take where no flag says it.
const MEMORY_LIMIT: &str = "OCELLI_MEMORY_LIMIT";

/// Variables that are no numbers, or no known names, are errors: ignored, they would mislead.
/// `OMP_NUM_THREADS` is left to others, who may write lists into it.
pub(crate) fn check_environment() -> Result<(), Failure> {
    let of = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    check_variables(of)?;
    check_isa(&of("OCELLI_ISA").unwrap_or_default(), Isa::available())
}

/// That this machine has the instruction set that is asked for.
fn check_isa(asked: &str, available: &[Isa]) -> Result<(), Failure> {
    if asked.is_empty() || available.iter().any(|isa| isa.name() == asked) {
        return Ok(());
    }
    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
    Err(Failure::usage(format!(
        "OCELLI_ISA={asked}: this machine has only {}; take one of these or unset it",
        names.join(", ")
    )))
}

fn check_variables(of: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let wrong = |name: &str, value: &str, expected: &str| {
        Failure::usage(format!("{name}={value}: expected {expected}; correct it or unset it"))
    };
    // RAYON_NUM_THREADS=0 means the default.
    for (name, least) in [("OCELLI_THREADS", 1), ("RAYON_NUM_THREADS", 0)] {
        let value = of(name).unwrap_or_default();
        let is_number = value.parse().is_ok_and(|n: u16| (least..=MOST_THREADS).contains(&n));
        if !value.is_empty() && !is_number {
            let expected = format!("a number of threads from {least} to {MOST_THREADS}");
            return Err(wrong(name, &value, &expected));
        }
    }
    let limit = of(MEMORY_LIMIT).unwrap_or_default();
    if !limit.is_empty() && memory::size(&limit).is_err() {
        return Err(wrong(MEMORY_LIMIT, &limit, "a size such as 8GiB"));
    }
    let isa = of("OCELLI_ISA").unwrap_or_default();
    if !isa.is_empty() && Isa::ALL.iter().all(|known| known.name() != isa) {
        let names = Isa::ALL.map(Isa::name).join(", ");
        return Err(wrong("OCELLI_ISA", &isa, &format!("one of {names}")));
    }
    Ok(())
}

/// Flags of all commands.
#[derive(Args, Debug)]
#[allow(clippy::struct_excessive_bools)] // Flags are what they are.
pub(crate) struct Global {
    /// Threads that compute; default: one per core, or OCELLI_THREADS
    #[arg(short = 't', long, global = true, value_name = "N", help_heading = "Global options",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_THREADS)))]
    pub(crate) threads: Option<u16>,
    /// Refuse a model that would take more memory, such as 8GiB, before it is loaded; default:
    /// OCELLI_MEMORY_LIMIT, or none
    #[arg(long, global = true, value_name = "SIZE", help_heading = "Global options",
        value_parser = memory::size)]
    memory_limit: Option<u64>,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// Say what is being done, and how long it took
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) verbose: bool,
    /// No colours; NO_COLOR in the environment does the same
    #[arg(long, global = true, help_heading = "Global options")]
    no_color: bool,
    /// No progress bar
    #[arg(long, global = true, help_heading = "Global options")]
    no_progress: bool,
    /// Never use the network; HF_HUB_OFFLINE=1 does the same
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) offline: bool,
    /// Hub cache; default: HF_HUB_CACHE, or hub in HF_HOME
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Branch, tag or commit of a hub model; default: main
    #[arg(long, global = true, value_name = "REV", help_heading = "Global options")]
    pub(crate) revision: Option<String>,
    /// Environment variable that holds the hub's access token; default: HF_TOKEN
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) token_env: Option<String>,
}

impl Global {
    /// Whether standard output takes colours.
    pub(crate) fn has_color(&self) -> bool {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        !self.no_color && !unwanted && stdout().is_terminal()
    }

    /// Most memory that a model may take, in bytes.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        let of_environment = || memory::size(&std::env::var(MEMORY_LIMIT).ok()?).ok();
        self.memory_limit.or_else(of_environment)
    }

    /// Whether a progress bar may be drawn: on a terminal that does not show results meanwhile.
    pub(crate) fn has_bar(&self, results_on_stdout: bool) -> bool {
        let shares_terminal = results_on_stdout && stdout().is_terminal();
        !self.no_progress && !self.quiet && stderr().is_terminal() && !shares_terminal
    }

    /// Whether lines of progress may be written.
    pub(crate) fn has_log(&self) -> bool {
        !self.quiet
    }

    /// Says something on standard error that only `--verbose` wants to know.
    #[allow(clippy::print_stderr)] // What this function is for.
    pub(crate) fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{}", text());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn variables_that_are_set_wrongly_are_named() {
        let check =
            |name: &str, value: &str| check_variables(|n| (n == name).then(|| value.to_owned()));
        for (name, value) in [
            ("OCELLI_THREADS", "abc"),
            ("OCELLI_THREADS", "0"),
            ("OCELLI_THREADS", "-1"),
            ("OCELLI_THREADS", "99999999999"),
            ("RAYON_NUM_THREADS", "two"),
            ("OCELLI_ISA", "avx1024"),
            ("OCELLI_MEMORY_LIMIT", "much"),
        ] {
            assert!(check(name, value).is_err_and(|e| format!("{e:?}").contains(name)), "{name}");
        }
        for (name, value) in [
            ("OCELLI_THREADS", "2"),
            ("OCELLI_THREADS", ""),
            ("RAYON_NUM_THREADS", "0"),
            ("OMP_NUM_THREADS", "4,2"),
            ("OCELLI_ISA", "avx2"),
            ("OCELLI_ISA", "neon"),
            ("OCELLI_MEMORY_LIMIT", "8GiB"),
        ] {
            assert!(check(name, value).is_ok(), "{name}={value}");
        }
    }

    #[test]
    fn an_instruction_set_that_is_not_there_is_an_error() {
        let there = [Isa::Portable, Isa::Avx2];
        assert!(check_isa("", &there).is_ok() && check_isa("avx2", &there).is_ok());
        let failure = format!("{:?}", check_isa("amx", &there).unwrap_err());
        assert!(failure.contains("OCELLI_ISA=amx"), "{failure}");
        assert!(failure.contains("only portable, avx2"), "{failure}");
    }
}
