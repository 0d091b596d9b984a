//! What a person sees of a run: a bar on a terminal, a line now and then elsewhere, all of it in
//! `out.log`.

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between lines that are no results.
const PAUSE: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Show {
    /// A bar on standard error.
    Bar,
    /// Lines on standard error.
    Lines,
    /// Nothing.
    #[default]
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Progress {
    show: Show,
    bar: ProgressBar,
    log: File,
    last: Option<Instant>,
}

impl Progress {
    pub(crate) fn open(show: Show, folder: &Path, done: u64, steps: u64) -> Result<Self> {
        let path = folder.join("out.log");
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|source| Error::Io { path, source })?;
        let target = match show {
            Show::Bar => ProgressDrawTarget::stderr(),
            Show::Lines | Show::Nothing => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(done);
        let style = "{bar:32} {pos}/{len} {msg} {elapsed} eta {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
        bar.reset_eta();
        Ok(Self { show, bar, log, last: None })
    }

    /// Moves the bar.
    pub(crate) fn step(&self, step: u64, loss: f32, images_per_second: f64) {
        self.bar.set_message(format!("loss {loss:.4} {images_per_second:.0} images/s"));
        self.bar.set_position(step);
    }

    /// What goes on within a step: on the bar, or in a line now and then.
    pub(crate) fn within_step(&mut self, text: &str) {
        self.bar.set_message(text.to_owned());
        if self.last.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.now_and_then(text);
        }
    }

    /// A line that appears now and then.
    pub(crate) fn now_and_then(&mut self, text: &str) {
        let is_due = self.last.is_none_or(|at| at.elapsed() >= PAUSE);
        self.write(text, self.show == Show::Lines && is_due);
        if is_due {
            self.last = Some(Instant::now());
        }
    }

    /// A line that always appears.
    pub(crate) fn line(&mut self, text: &str) {
        self.write(text, self.show != Show::Nothing);
    }

    fn write(&mut self, text: &str, is_shown: bool) {
        // Neither a full disk nor a closed terminal is a reason to stop training.
        let _ = writeln!(self.log, "{text}");
        if !is_shown {
            return;
        }
        if self.show == Show::Bar {
            self.bar.println(text);
        } else {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
