//! Several sources as one dataset.

use std::{collections::HashMap, path::Path};

use super::{
    classes::{Labels, visible},
    config::{Kind, SourceConfig},
    error::{DatasetError, Result},
    folder::Folder,
    json_lines::JsonLines,
    shards::Shards,
    source::{Annotation, Sample, Source},
    table::Table,
};

/// Samples of one or more sources, numbered from 0 through all of them.
pub struct Dataset {
    parts: Vec<Part>,
    classes: Vec<String>,
    class_count: u32,
}

struct Part {
    source: Box<dyn Source>,
    labels: Vec<u32>,
    weight: f64,
    /// Number of its first sample.
    start: usize,
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dataset of {} samples, {} classes", self.len(), self.class_count)
    }
}

impl Dataset {
    /// Opens the sources and makes their indices. Class names of all of them, sorted, are the classes.
    ///
    /// # Errors
    /// When a source cannot be read, is malformed (the message names the file with the line or
    /// member) or has no samples, or when labels are names in one place and numbers in another.
    pub fn open(sources: &[SourceConfig]) -> Result<Self> {
        Self::open_parts(sources, None)
    }

    /// The same with the classes of another dataset: those of the training set, for validation.
    ///
    /// # Errors
    /// As [`Dataset::open`], and when a class is none of `classes`.
    pub fn open_with_classes(sources: &[SourceConfig], classes: &[String]) -> Result<Self> {
        Self::open_parts(sources, Some(classes))
    }

    fn open_parts(sources: &[SourceConfig], known: Option<&[String]>) -> Result<Self> {
        let mut opened = Vec::new();
        for config in sources {
            config.check_weight()?;
            let (source, labels) = open_source(config)?;
            if labels.len() == 0 {
                let found = "it is empty or all filtered out".to_owned();
                return Err(DatasetError::NoSamples { path: config.path.clone(), found });
            }
            opened.push((config, source, labels));
        }
        let class_count = opened.iter().map(|(_, _, labels)| labels.indices()).max().unwrap_or(0);
        let mut classes: Vec<String> = match known {
            Some(known) => known.to_vec(),
            None => {
                opened.iter().flat_map(|(_, _, labels)| labels.names().iter().cloned()).collect()
            }
        };
        if known.is_none() {
            classes.sort_unstable();
            classes.dedup();
            if let (false, 1..) = (classes.is_empty(), class_count)
                && let Some((config, _, labels)) =
                    opened.iter().find(|(_, _, labels)| labels.indices() > 0)
            {
                return Err(DatasetError::MixedLabels {
                    path: config.path.clone(),
                    label: (labels.indices() - 1).to_string(),
                    found: "number",
                    others: "names",
                });
            }
        }
        let places: HashMap<&str, u32> =
            classes.iter().enumerate().map(|(place, name)| (name.as_str(), place as u32)).collect();
        let (mut parts, mut start) = (Vec::new(), 0);
        for (config, source, labels) in opened {
            let labels = labels.numbered(&places, &config.path)?;
            let length = labels.len();
            parts.push(Part { source, labels, weight: config.weight, start });
            start += length;
        }
        let class_count = class_count.max(classes.len() as u32);
        Ok(Self { parts, classes, class_count })
    }

    /// Number of samples in all sources, each counted once.
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.start + part.labels.len())
    }

    /// Whether there are none; only a dataset of no sources has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the classes in the order of their indices; empty when labels are numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of classes: of the names, or the largest label plus one.
    pub fn class_count(&self) -> usize {
        self.class_count as usize
    }

    /// Number of samples and weight of each source.
    pub(super) fn shares(&self) -> impl Iterator<Item = (usize, f64)> {
        self.parts.iter().map(|part| (part.labels.len(), part.weight))
    }

    /// A sample.
    ///
    /// # Errors
    /// When its files cannot be read or its annotation is malformed.
    ///
    /// # Panics
    /// When `index` is not below [`Dataset::len`], as for all that follows.
    pub fn sample(&self, index: usize) -> Result<Sample> {
        Ok(Sample { annotation: self.annotation(index)?, picture: self.picture(index)? })
    }

    /// What is known about the picture of a sample.
    ///
    /// # Errors
    /// As [`Dataset::sample`].
    pub fn annotation(&self, index: usize) -> Result<Annotation> {
        let (part, index) = self.part(index);
        let label = visible(part.labels[index]);
        Ok(Annotation { label, ..part.source.annotation(index)? })
    }

    /// The bytes of the picture file of a sample.
    ///
    /// # Errors
    /// As [`Dataset::sample`].
    pub fn picture(&self, index: usize) -> Result<Vec<u8>> {
        let (part, index) = self.part(index);
        part.source.picture(index)
    }

    /// Where a sample is, for messages: a file, with the line or member.
    pub fn place(&self, index: usize) -> String {
        let (part, index) = self.part(index);
        part.source.place(index)
    }

    fn part(&self, index: usize) -> (&Part, usize) {
        let part = self.parts.partition_point(|part| part.start <= index) - 1;
        let part = &self.parts[part];
        (part, index - part.start)
    }
}

fn open_source(config: &SourceConfig) -> Result<(Box<dyn Source>, Labels)> {
    fn boxed((source, labels): (impl Source + 'static, Labels)) -> (Box<dyn Source>, Labels) {
        (Box::new(source), labels)
    }
    // The names of shards are a pattern.
    let kind = config.kind();
    if !matches!(kind, Ok(Kind::Shards)) && !Path::new(&config.path).exists() {
        return Err(DatasetError::NotThere { path: config.path.clone() });
    }
    Ok(match kind? {
        Kind::Folder => boxed(Folder::open(config)?),
        Kind::Table => boxed(Table::open(config)?),
        Kind::JsonLines => boxed(JsonLines::open(config)?),
        Kind::Shards => boxed(Shards::open(config)?),
    })
}
