//! `ocelli doctor`: what this machine offers, and what this program makes of it.

use crate::failure::Failure;
use crate::global::Global;
use crate::memory;
use crate::output::Output;
use ocelli_kernels::{Isa, pool, simd};
use std::path::PathBuf;

/// Show what this machine offers and which settings are in force
#[derive(clap::Args)]
#[command(after_help = "\
Prints the processor, the instruction set that was chosen, threads, memory, the measured f32 rate,
the model cache and the environment variables that were seen. Attach it to a report of a problem.")]
pub(crate) struct Args {}

/// Variables that change what this program does.
const VARIABLES: [&str; 16] = [
    "OCELLI_THREADS",
    "OCELLI_ISA",
    "RAYON_NUM_THREADS",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "XDG_CACHE_HOME",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "NO_COLOR",
    "TMPDIR",
];

pub(crate) fn run(global: &Global, _: &Args) -> Result<(), Failure> {
    let mut out = Output::new();
    let mut say = |name: &str, value: &str| out.text(&format!("{name:<14} {value}\n"));
    say("version", env!("CARGO_PKG_VERSION"))?;
    say("system", &format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))?;
    say("processor", &processor().unwrap_or_else(|| "unknown".to_owned()))?;
    say("instructions", &format!("{:?}, of {:?}", Isa::best(), Isa::available()))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say("threads", &format!("{} on {cores} cores", pool::threads()))?;
    say("memory", &memory().unwrap_or_else(|| "unknown".to_owned()))?;
    say("f32 rate", &format!("{:.0} GFLOP/s, measured", simd::fma_rate()))?;
    let cache = global.cache_dir.clone().or_else(cache);
    let cache = cache.map_or("none: HOME is not set".to_owned(), |dir| {
        let state = if dir.is_dir() { "there" } else { "not there yet" };
        format!("{} ({state})", dir.display())
    });
    say("model cache", &cache)?;
    for name in VARIABLES {
        let Some(value) = std::env::var_os(name) else { continue };
        let is_secret = name == "HF_TOKEN";
        let shown = if is_secret { "set".into() } else { value.to_string_lossy() };
        say("environment", &format!("{name}={shown}"))?;
    }
    out.flush()
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> Option<String> {
    let gib = |bytes: u64| bytes as f64 / (1_u64 << 30) as f64;
    let (all, left) = (memory::of_machine("MemTotal")?, memory::available()?);
    Some(format!("{:.1} GiB, {:.1} GiB available", gib(all), gib(left)))
}

/// Where hub models are kept.
fn cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE").or_else(|| {
        let home = var("HF_HOME")
            .or_else(|| Some(var("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(var("HOME")?.join(".cache/huggingface")))?;
        Some(home.join("hub"))
    })
}
