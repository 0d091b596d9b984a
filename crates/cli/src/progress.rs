//! Progress on standard error: a bar on a terminal once the work takes more than a second, else a
//! line every ten seconds.

use crate::global::Global;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::time::{Duration, Instant};

const BAR_AFTER: Duration = Duration::from_secs(1);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts work that is done.
pub(crate) struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: u64,
    started: Instant,
    said: Instant,
    may_draw: bool,
    may_log: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `what` is counted, such as "pictures"; `total` of them if that is known.
    pub(crate) fn new(
        global: &Global,
        what: &'static str,
        total: Option<u64>,
        results_on_stdout: bool,
    ) -> Self {
        let now = Instant::now();
        let may_draw = global.has_bar(results_on_stdout);
        let may_log = global.has_log() && !may_draw;
        Self { what, total, done: 0, started: now, said: now, may_draw, may_log, bar: None }
    }

    /// `n` more are done.
    #[allow(clippy::print_stderr)] // Progress is for people, results for programs.
    pub(crate) fn add(&mut self, n: usize) {
        self.done += n as u64;
        let elapsed = self.started.elapsed();
        if self.may_draw && elapsed > BAR_AFTER {
            let bar = self.bar.get_or_insert_with(|| bar(self.total, self.what, elapsed));
            bar.set_position(self.done);
        } else if self.may_log && self.said.elapsed() > LINE_EVERY {
            self.said = Instant::now();
            eprintln!("{}", line(self.done, self.total, self.what, elapsed.as_secs_f64()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>, what: &'static str, elapsed: Duration) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:32} {human_pos}/{human_len} {msg}, {rate}/s, {left} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} {msg}, {rate}/s, {elapsed}"),
    };
    let style = ProgressStyle::with_template(template);
    // Over all the time: the rates of the library start when the bar appears.
    let rate = |state: &ProgressState| state.pos() as f64 / state.elapsed().as_secs_f64().max(1e-9);
    let style = style
        .expect("the templates above are sound")
        .with_key("rate", move |state: &ProgressState, text: &mut dyn Write| {
            let _ = write!(text, "{:.1}", rate(state)); // A string takes everything.
        })
        .with_key("left", move |state: &ProgressState, text: &mut dyn Write| {
            let left = state.len().unwrap_or(0).saturating_sub(state.pos()) as f64;
            let _ = write!(text, "{:.0} s", left / rate(state).max(1e-9)); // As above.
        });
    bar.with_style(style).with_message(what).with_elapsed(elapsed)
}

fn line(done: u64, total: Option<u64>, what: &str, seconds: f64) -> String {
    let rate = done as f64 / seconds.max(1e-9);
    let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
    format!("{done}{of} {what} in {seconds:.0} s, {rate:.1} a second")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_fast() {
        assert_eq!(line(50, None, "pictures", 10.0), "50 pictures in 10 s, 5.0 a second");
        assert_eq!(line(5, Some(10), "prompts", 2.0), "5 of 10 prompts in 2 s, 2.5 a second");
    }
}
