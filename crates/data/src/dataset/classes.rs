//! Class labels of a source: names that become indices in sorted order, or indices as given.

use std::collections::HashMap;

use super::error::{DatasetError, Result};

/// Stands for no label.
const NONE: u32 = u32::MAX;
/// Classes a dataset may have; also the bound of an index.
pub(super) const MAX_CLASSES: u32 = 1 << 24;

/// A label as a source spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Label {
    /// Not labelled.
    None,
    /// The index of the class.
    Index(u32),
    /// The name of the class.
    Name(String),
}

/// The labels of the samples of a source, one each.
#[derive(Debug, Default)]
pub(super) struct Labels {
    /// An index, or the place of a name in `names`.
    of: Vec<u32>,
    names: Vec<String>,
    places: HashMap<String, u32>,
    /// The largest index among labels that are numbers.
    largest: Option<u32>,
}

impl Labels {
    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Adds the label of the next sample; `path` is the source, for the message.
    pub(super) fn push(&mut self, label: Label, path: &str) -> Result<()> {
        let mixed = |label: String, found, others| {
            Err(DatasetError::MixedLabels { path: path.to_owned(), label, found, others })
        };
        let number = match label {
            Label::None => NONE,
            Label::Index(index) if !self.names.is_empty() => {
                return mixed(index.to_string(), "number", "names");
            }
            Label::Index(index) => {
                self.largest = self.largest.max(Some(index));
                index
            }
            Label::Name(name) if self.largest.is_some() => return mixed(name, "name", "numbers"),
            Label::Name(name) => {
                let next = self.names.len() as u32;
                *self.places.entry(name).or_insert_with_key(|name| {
                    self.names.push(name.clone());
                    next
                })
            }
        };
        self.of.push(number);
        Ok(())
    }

    /// Number of the largest index plus one, or 0 when there are no such labels.
    pub(super) fn indices(&self) -> u32 {
        self.largest.map_or(0, |largest| largest + 1)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// The labels with the names numbered by their place in `classes`, which is sorted unless `known`
    /// were given.
    pub(super) fn numbered(mut self, classes: &HashMap<&str, u32>, path: &str) -> Result<Vec<u32>> {
        let map = self.names.iter().map(|name| {
            classes.get(name.as_str()).copied().ok_or_else(|| DatasetError::UnknownClass {
                path: path.to_owned(),
                class: name.clone(),
                known: classes.len(),
            })
        });
        let map: Vec<u32> = map.collect::<Result<_>>()?;
        if !map.is_empty() {
            for place in self.of.iter_mut().filter(|place| **place != NONE) {
                *place = map[*place as usize];
            }
        }
        Ok(self.of)
    }
}

/// A label as callers see it.
pub(super) fn visible(label: u32) -> Option<u32> {
    (label != NONE).then_some(label)
}
