//! The scalars of a run: one line of `log.jsonl` a record, the same in TensorBoard files and plots.

use crate::checkpoint::write_atomically;
use crate::plot::{Panel, Series, draw};
use crate::tensorboard::EventWriter;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is not drawn: the axis itself and how fast the machine was.
const NOT_DRAWN: [&str; 3] = ["step", "seconds", "images_per_second"];

/// Writes scalars as they come.
#[derive(Debug)]
pub(crate) struct Recorder {
    folder: PathBuf,
    log: File,
    events: EventWriter,
    /// Values by name and step.
    series: BTreeMap<String, Vec<(u64, f64)>>,
}

impl Recorder {
    /// In the run's `folder`; of an earlier part of the run, records after `step` are dropped.
    pub(crate) fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("log.jsonl");
        let mut series: BTreeMap<String, Vec<(u64, f64)>> = BTreeMap::new();
        let (mut kept, old) = (String::new(), std::fs::read_to_string(&path).unwrap_or_default());
        for line in old.lines() {
            // A line that was cut by a kill is no record.
            let Ok(Value::Object(record)) = serde_json::from_str(line) else { continue };
            let Some(at) = record.get("step").and_then(Value::as_u64).filter(|at| *at <= step)
            else {
                continue;
            };
            for (name, value) in &record {
                series.entry(name.clone()).or_default().extend(value.as_f64().map(|v| (at, v)));
            }
            kept += line;
            kept.push('\n');
        }
        write_atomically(&path, kept.as_bytes())?;
        let io = |source| Error::Io { path: path.clone(), source };
        let log = OpenOptions::new().append(true).open(&path).map_err(io)?;
        let events = EventWriter::create(&folder.join("tensorboard"), now()).map_err(io)?;
        Ok(Self { folder: folder.to_path_buf(), log, events, series })
    }

    /// Adds values at `step`.
    pub(crate) fn record(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let io = |source| Error::Io { path: self.folder.join("log.jsonl"), source };
        let mut record = Map::new();
        record.insert("step".to_owned(), step.into());
        for (name, value) in values {
            record.insert(name.clone(), (*value).into());
            self.series.entry(name.clone()).or_default().push((step, *value));
            self.events.scalar(now(), step, name, *value as f32).map_err(io)?;
        }
        writeln!(self.log, "{}", Value::Object(record)).map_err(io)?;
        self.events.flush().map_err(io)
    }

    /// Draws everything into `plot.svg` and `plot.png`.
    pub(crate) fn plot(&self) -> Result<()> {
        let panel = |title: &str, belongs: &dyn Fn(&str) -> bool| {
            let series = self
                .series
                .iter()
                .filter(|(name, _)| !NOT_DRAWN.contains(&name.as_str()) && belongs(name));
            let series = series.map(|(name, points)| Series { name: name.clone(), points });
            Panel { title: title.to_owned(), series: series.collect() }
        };
        let is_loss = |name: &str| name == "loss" || name.ends_with("_loss");
        let is_score = |name: &str| name.contains("_top") || name.contains("_r1");
        let panels = [
            panel("loss", &is_loss),
            panel("accuracy", &is_score),
            panel("learning rate", &|name| name == "lr"),
            panel("gradient norm", &|name| name == "grad_norm"),
        ];
        let panels: Vec<Panel<'_>> = panels.into_iter().filter(|p| !p.series.is_empty()).collect();
        if panels.is_empty() {
            return Ok(());
        }
        let (svg, png) = draw(&panels)?;
        write_atomically(&self.folder.join("plot.svg"), svg.as_bytes())?;
        write_atomically(&self.folder.join("plot.png"), &png)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_reads_like_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let mut recorder = Recorder::open(folder.path(), 0).unwrap();
        for step in 1..=4 {
            let values = [("loss".to_owned(), 1.0 / step as f64), ("lr".to_owned(), 0.1)];
            recorder.record(step, &values).unwrap();
        }
        drop(recorder);
        let whole = std::fs::read_to_string(&log).unwrap();
        // Killed within a line after step 4, resumed from step 2.
        std::fs::write(&log, format!("{whole}{{\"step\":5,\"lo")).unwrap();
        let mut recorder = Recorder::open(folder.path(), 2).unwrap();
        for step in 3..=4 {
            let values = [("loss".to_owned(), 1.0 / step as f64), ("lr".to_owned(), 0.1)];
            recorder.record(step, &values).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&log).unwrap(), whole);
        assert_eq!(recorder.series["loss"].len(), 4);
        recorder.plot().unwrap();
        let png = std::fs::read(folder.path().join("plot.png")).unwrap();
        assert!(png.starts_with(b"\x89PNG") && folder.path().join("plot.svg").is_file());
    }
}
