//! What a run would take with more threads, by a rehearsal of its tasks on one.

use super::Step;
use crate::failure::Failure;
use crate::table::columns;
use ocelli_kernels::pool;
use ocelli_kernels::rehearsal::Rehearsal;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Threads that a run is split for.
const THREADS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Rehearsals; of each task the fastest counts.
const TURNS: usize = 5;
/// Forks that the cost of one is the median of.
const FORKS: usize = 501;
/// What each of their tasks takes.
const TASK: Duration = Duration::from_micros(20);

#[derive(Serialize)]
struct Row {
    threads: usize,
    ms: f64,
    serial_ms: f64,
    forks: usize,
}

/// The table of [`THREADS`], as text or as a line of JSON each.
pub(super) fn table(step: &mut Step, json: bool) -> Result<String, Failure> {
    let join = join();
    let mut rows = Vec::new();
    for threads in THREADS {
        let mut best: Option<Rehearsal> = None;
        for _ in 0..TURNS {
            let mut done = Ok(());
            let turn = Rehearsal::of(threads, || done = step.run());
            done?;
            best = Some(match best {
                Some(best) => best.faster(&turn),
                None => turn,
            });
        }
        let Some(best) = best else { continue };
        // Threads enter a fork one after the other.
        let join = if threads > 1 { join * threads as u32 / 2 } else { Duration::ZERO };
        let [ms, serial_ms] = [best.time(join), best.serial()].map(|t| 1e3 * t.as_secs_f64());
        rows.push(Row { threads, ms, serial_ms, forks: best.forks() });
    }
    if json {
        let lines: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
        return lines.map(|lines| lines.join("\n")).map_err(|e| Failure::runtime(e.to_string()));
    }
    let first = rows.first().map_or(1.0, |row| row.ms);
    let mut cells = vec![
        ["threads", "ms", "times", "of the ideal", "one thread alone, ms", "forks"]
            .map(str::to_owned)
            .to_vec(),
    ];
    cells.extend(rows.iter().map(|row| {
        let times = first / row.ms;
        vec![
            row.threads.to_string(),
            format!("{:.1}", row.ms),
            format!("{times:.1}"),
            format!("{:.0} %", 100.0 * times / row.threads as f64),
            format!("{:.2}", row.serial_ms),
            row.forks.to_string(),
        ]
    }));
    let us = 1e6 * join.as_secs_f64();
    Ok(format!(
        "{}a fork of two threads costs {us:.1} µs here, one of n is taken to cost n / 2 times that;\n\
         caches and memory are those of one core",
        columns(&cells)
    ))
}

/// What a fork of two threads costs beside its tasks, measured with the threads that there are.
fn join() -> Duration {
    let threads = pool::threads();
    if threads < 2 {
        return Duration::ZERO;
    }
    let spin = || {
        let begin = Instant::now();
        while begin.elapsed() < TASK {
            std::hint::spin_loop();
        }
    };
    let fork = || {
        let begin = Instant::now();
        pool::parallel_for(threads, |_| spin());
        begin.elapsed().saturating_sub(TASK)
    };
    let mut times: Vec<Duration> = (0..FORKS).map(|_| fork()).collect();
    times.sort_unstable();
    times[FORKS / 2] * 2 / threads as u32
}
