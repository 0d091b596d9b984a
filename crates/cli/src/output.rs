//! Results on standard output.

use crate::failure::Failure;
use serde::Serialize;
use std::io::{BufWriter, Stdout, Write, stdout};

/// Buffered standard output whose errors end a command.
pub(crate) struct Output(BufWriter<Stdout>);

impl Output {
    pub(crate) fn new() -> Self {
        Self(BufWriter::with_capacity(1 << 16, stdout()))
    }

    /// Writes text as it is.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.0.write_all(text.as_bytes()).map_err(|e| Failure::output(&e))
    }

    /// Writes a line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(value)
            .map_err(|e| Failure::runtime(format!("cannot write JSON: {e}")))?;
        self.text(&line)?;
        self.text("\n")
    }

    /// Hands everything to the reader.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|e| Failure::output(&e))
    }
}

/// The line of a picture that cannot be read.
#[derive(Serialize)]
pub(crate) struct Unread<'a> {
    pub(crate) image: &'a str,
    pub(crate) error: &'a str,
}
