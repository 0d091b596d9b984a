//! WebDataset tar shards: neighbouring members with the same name up to the first dot are a sample.
//!
//! One pass over the headers makes the index; pictures, captions and JSON stay in the shards and are
//! read by offset. The JSON members are looked into once more when there is a filter or a label key.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    classes::{Label, Labels, MAX_CLASSES},
    config::SourceConfig,
    error::{DatasetError, Result, TarError},
    fields::{Fields, object},
    shard_names::shard_names,
    source::{Annotation, MAX_TEXT, Source, Span},
    tar::{Member, Members},
};
use crate::image::ENDINGS;

pub(super) struct Shards {
    paths: Vec<PathBuf>,
    fields: Fields,
    entries: Vec<Entry>,
}

/// The members of a sample.
struct Entry {
    shard: u32,
    key: Box<str>,
    picture: Span,
    json: Option<Span>,
    txt: Option<Span>,
}

/// A sample whose members are still coming.
#[derive(Default)]
struct Open {
    key: String,
    picture: Option<Span>,
    json: Option<Span>,
    txt: Option<Span>,
    object: Option<Value>,
    label: Option<Label>,
}

/// What the scan of all shards found.
struct Scan<'a> {
    config: &'a SourceConfig,
    source: Shards,
    labels: Labels,
    without_picture: u64,
    filtered: u64,
}

impl Shards {
    pub(super) fn open(config: &SourceConfig) -> Result<(Self, Labels)> {
        let paths = shard_names(&config.path)?.into_iter().map(PathBuf::from).collect();
        let fields = Fields::new(config, &["caption", "text"], None);
        let source = Self { paths, fields, entries: Vec::new() };
        let (labels, without_picture, filtered) = (Labels::default(), 0, 0);
        let mut scan = Scan { config, source, labels, without_picture, filtered };
        for shard in 0..scan.source.paths.len() {
            let path = scan.source.paths[shard].clone();
            scan.shard(shard as u32, &path)?;
        }
        if scan.source.entries.is_empty() {
            let (without, filtered) = (scan.without_picture, scan.filtered);
            return Err(DatasetError::NoSamples {
                path: config.path.clone(),
                found: format!("{without} without a picture, {filtered} filtered out"),
            });
        }
        Ok((scan.source, scan.labels))
    }
}

impl Scan<'_> {
    fn shard(&mut self, shard: u32, path: &Path) -> Result<()> {
        let file = File::open(path)
            .map_err(|source| DatasetError::Io { path: path.to_path_buf(), source })?;
        let wrong = |source| tar_error(source, path);
        let mut members = Members::new(file).map_err(wrong)?;
        let mut open = Open::default();
        while let Some(member) = members.next() {
            let member = member.map_err(wrong)?;
            let Some((key, extension)) = split(&member.name) else { continue };
            if key != open.key {
                self.close(shard, std::mem::take(&mut open))?;
                key.clone_into(&mut open.key);
            }
            let span = Span { offset: member.offset, length: member.size };
            let place = || format!("{}: {}", path.display(), member.name);
            match extension.to_ascii_lowercase().as_str() {
                "json" => {
                    if self.source.fields.matter_to_index() {
                        let bytes = read_text(&mut members, &member, path)?;
                        open.object = Some(object(&bytes, place)?);
                    }
                    open.json = Some(span);
                }
                "txt" => open.txt = Some(span),
                "cls" => {
                    let bytes = read_text(&mut members, &member, path)?;
                    open.label = Some(class(&bytes, place)?);
                }
                extension if ENDINGS.contains(&extension) => open.picture = Some(span),
                _ => {}
            }
        }
        self.close(shard, open)
    }

    /// Takes a sample whose members have all been seen.
    fn close(&mut self, shard: u32, open: Open) -> Result<()> {
        if open.key.is_empty() {
            return Ok(());
        }
        let Some(picture) = open.picture else {
            self.without_picture += 1;
            return Ok(());
        };
        let fields = &self.source.fields;
        let object = open.object.unwrap_or(Value::Null);
        if !fields.keeps(&object) {
            self.filtered += 1;
            return Ok(());
        }
        let path = &self.source.paths[shard as usize];
        let place = || format!("{}: {}.json", path.display(), open.key);
        let label = match open.label {
            Some(label) if fields.label.is_none() => label,
            _ => fields.label(&object, place)?,
        };
        self.labels.push(label, &self.config.path)?;
        let key = open.key.into_boxed_str();
        self.source.entries.push(Entry { shard, key, picture, json: open.json, txt: open.txt });
        Ok(())
    }
}

impl Source for Shards {
    fn annotation(&self, index: usize) -> Result<Annotation> {
        let entry = &self.entries[index];
        let path = &self.paths[entry.shard as usize];
        let mut captions = Vec::new();
        if let Some(span) = entry.txt {
            let text = self.text(index, span, "txt")?;
            let text = String::from_utf8_lossy(&text);
            if !text.trim().is_empty() {
                captions.push(vec![text.trim().to_owned()]);
            }
        }
        let mut meta = Value::Null;
        if let Some(span) = entry.json {
            let place = || format!("{}: {}.json", path.display(), entry.key);
            meta = object(&self.text(index, span, "json")?, place)?;
            captions.append(&mut self.fields.captions(&meta, place)?);
        }
        Ok(Annotation { key: entry.key.to_string(), captions, label: None, meta })
    }

    fn picture(&self, index: usize) -> Result<Vec<u8>> {
        let entry = &self.entries[index];
        entry.picture.read_picture(&self.paths[entry.shard as usize], || self.place(index))
    }

    fn place(&self, index: usize) -> String {
        let entry = &self.entries[index];
        format!("{}: {}", self.paths[entry.shard as usize].display(), entry.key)
    }
}

impl Shards {
    fn text(&self, index: usize, span: Span, extension: &str) -> Result<Vec<u8>> {
        if span.length > MAX_TEXT {
            let place = format!("{}.{extension}", self.place(index));
            return Err(DatasetError::TooLong { place, limit: MAX_TEXT });
        }
        span.read(&self.paths[self.entries[index].shard as usize])
    }
}

fn tar_error(source: TarError, path: &Path) -> DatasetError {
    DatasetError::Tar { path: path.to_path_buf(), source }
}

fn read_text(members: &mut Members<File>, member: &Member, path: &Path) -> Result<Vec<u8>> {
    if member.size > MAX_TEXT {
        let place = format!("{}: {}", path.display(), member.name);
        return Err(DatasetError::TooLong { place, limit: MAX_TEXT });
    }
    members.read(member).map_err(|source| tar_error(source, path))
}

/// The index in a `.cls` member.
fn class(bytes: &[u8], place: impl Fn() -> String) -> Result<Label> {
    let text = String::from_utf8_lossy(bytes);
    match text.trim().parse() {
        Ok(index) if index < MAX_CLASSES => Ok(Label::Index(index)),
        _ => Err(DatasetError::Field {
            place: place(),
            field: "cls".to_owned(),
            found: text.chars().take(60).collect(),
            expected: "an integer from 0 to 16777215",
        }),
    }
}

/// Key and extension: the first dot of the file name parts them. Hidden files have none.
fn split(name: &str) -> Option<(&str, &str)> {
    let file = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[file..].find('.').filter(|&dot| dot > 0)?;
    Some((&name[..file + dot], &name[file + dot + 1..]))
}
