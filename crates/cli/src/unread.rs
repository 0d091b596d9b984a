//! Pictures that could not be read, where the result needs all of them.

use crate::failure::Failure;
use crate::pictures::Batch;
use std::path::Path;

/// Names that a message lists before it only counts.
const LISTED: usize = 20;

/// A picture and why it could not be read; most errors name it themselves.
pub(crate) fn line(name: &str, error: &str) -> String {
    if error.contains(name) { error.to_owned() } else { format!("{name}: {error}") }
}

/// The first of them, and how many there are.
#[derive(Default)]
pub(crate) struct UnreadList {
    listed: Vec<String>,
    count: usize,
}

impl UnreadList {
    /// Whether all pictures so far were read.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Notes those of a batch.
    pub(crate) fn note(&mut self, batch: &Batch) {
        for picture in &batch.pictures {
            let Some(error) = &picture.error else { continue };
            self.count += 1;
            if self.listed.len() < LISTED {
                self.listed.push(line(&picture.name, error));
            }
        }
    }

    /// Fails with the list if there is any; `path` was not written then.
    pub(crate) fn check(&self, path: &Path) -> Result<(), Failure> {
        if self.is_empty() {
            return Ok(());
        }
        let mut text = format!(
            "{} not written, as {} of the pictures cannot be read; leave them out",
            path.display(),
            self.count
        );
        for line in &self.listed {
            text += &format!("\n  {line}");
        }
        if self.count > self.listed.len() {
            text += &format!("\n  and {} more", self.count - self.listed.len());
        }
        Err(Failure::input(text))
    }
}
