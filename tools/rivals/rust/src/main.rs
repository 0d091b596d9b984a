//! One rival behind the line protocol of `ocelli bench --interactive`.
//!
//! Usage: `rivals candle|rten TASK TYPE SIZE DATA`. SIZE is pictures or tokens. Prints `ready`, then answers each
//! line N on standard input with N times in milliseconds. TASK `once` runs once and ends.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

mod candle_rival;
mod rten_rival;

/// One repetition of what is timed.
pub type Work = Box<dyn FnMut() -> Result<()>>;

/// The same numbers in every run, between -0.5 and 0.5: the time does not depend on them.
pub fn pixels(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5).collect()
}

/// Token ids inside a vocabulary of 32,000 that do not repeat soon.
pub fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 300 + i * 4099 % 31_000).collect()
}

fn answer(work: &mut Work) -> Result<()> {
    println!("ready");
    for line in stdin().lock().lines() {
        let mut times = Vec::new();
        for _ in 0..line?.trim().parse::<usize>()? {
            let start = Instant::now();
            work()?;
            times.push(format!("{:.4}", start.elapsed().as_secs_f64() * 1e3));
        }
        println!("{}", times.join(" "));
        stdout().flush()?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [engine, task, dtype, size, data] = &args[..] else {
        bail!("usage: rivals candle|rten TASK TYPE SIZE DATA")
    };
    let (size, data) = (size.parse()?, Path::new(data));
    let once = task == "once";
    let task = if once { "vit-b16" } else { task };
    let mut work = match engine.as_str() {
        "candle" => candle_rival::work(task, dtype, size, data)?,
        "rten" => rten_rival::work(task, dtype, size, data)?,
        other => bail!("no engine {other}"),
    };
    if once { work() } else { answer(&mut work) }
}
