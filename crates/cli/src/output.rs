//! Results on standard output.

use crate::failure::Failure;
use ocelli_nn::checkpoint::destination;
use serde::Serialize;
use std::io::{BufWriter, IsTerminal, Stdout, Write, stdout};
use std::path::Path;

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

    /// Writes text of a model. A terminal is shown no control characters but ends of lines and tabs:
    /// they would move its cursor, or worse.
    pub(crate) fn written(&mut self, text: &str) -> Result<(), Failure> {
        if !stdout().is_terminal() {
            return self.text(text);
        }
        self.text(&harmless(text))
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

/// The text with a mark in place of each control character but ends of lines and tabs.
pub(crate) fn harmless(text: &str) -> String {
    let is_harmful = |c: char| c.is_control() && !['\n', '\t'].contains(&c);
    text.chars().map(|c| if is_harmful(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Writes a file whole or not at all. A link stays, and what it points to is replaced.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failure = |e: std::io::Error| {
        Failure::runtime(format!("cannot write {}: {e}; choose another place", path.display()))
    };
    let target = destination(path).map_err(failure)?;
    let draft = target.with_added_extension("draft");
    let written = std::fs::write(&draft, bytes).and_then(|()| std::fs::rename(&draft, target));
    written.map_err(|e| {
        // What is left of it is of no use; that it cannot be removed either is not news.
        let _ = std::fs::remove_file(&draft);
        failure(e)
    })
}

/// That a file can be written at `path`, as far as that can be told before.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    let wrong = |why: String| Failure::runtime(format!("cannot write {}: {why}", path.display()));
    let target = destination(path).map_err(|e| wrong(e.to_string()))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            Err(wrong(format!("there is no folder {}; make it first", folder.display())))
        }
        _ => Ok(()),
    }
}

/// The line of a picture that cannot be read.
#[derive(Serialize)]
pub(crate) struct Unread<'a> {
    pub(crate) image: &'a str,
    pub(crate) error: &'a str,
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn a_terminal_is_not_moved_by_what_a_model_writes() {
        assert_eq!(
            harmless("a\u{1b}[2Jb\r\u{7}c\n\td é 狐"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n\td é 狐"
        );
    }
}
