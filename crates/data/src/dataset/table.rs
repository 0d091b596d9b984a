//! CSV and TSV with a header: a column of picture paths and a column of captions.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use csv::{ErrorKind, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{
    classes::Labels,
    config::SourceConfig,
    error::{DatasetError, Result},
    fields::Fields,
    source::{Annotation, MAX_TEXT, Source, Span, read_picture},
};

pub(super) struct Table {
    path: PathBuf,
    root: PathBuf,
    separator: u8,
    columns: Vec<String>,
    /// Column of the picture.
    picture: usize,
    fields: Fields,
    rows: Vec<Row>,
}

struct Row {
    /// Where it begins, from 1.
    line: u64,
    span: Span,
}

impl Table {
    pub(super) fn open(config: &SourceConfig) -> Result<(Self, Labels)> {
        let path = PathBuf::from(&config.path);
        let separator = config.separator()?;
        let file =
            File::open(&path).map_err(|source| DatasetError::Io { path: path.clone(), source })?;
        let mut reader = ReaderBuilder::new()
            .delimiter(separator)
            .from_reader(Metered { inner: file, left: MAX_TEXT });
        let wrong = |error| row_error(error, &path);
        let columns: Vec<String> =
            reader.headers().map_err(wrong)?.iter().map(str::to_owned).collect();
        let column = |name: &str| {
            columns.iter().position(|column| column == name).ok_or_else(|| DatasetError::NoColumn {
                path: path.clone(),
                column: name.to_owned(),
                found: columns.clone(),
            })
        };
        let picture = column(config.picture_key.as_deref().unwrap_or("filepath"))?;
        let mut fields = Fields::new(config, &["title"], None);
        if config.caption_keys.is_none() && fields.label.is_some() && column("title").is_err() {
            // A table of labelled pictures needs no captions.
            fields.captions.clear();
        }
        for name in fields.captions.iter().chain(&fields.label).chain(config.conditions.keys()) {
            column(name)?;
        }
        let mut table = Self {
            path: path.clone(),
            root: config.root(),
            separator,
            picture,
            fields,
            rows: Vec::new(),
            columns: columns.clone(),
        };
        let (mut labels, mut record) = (Labels::default(), StringRecord::new());
        loop {
            reader.get_mut().left = MAX_TEXT;
            let from = reader.position().byte();
            if !reader.read_record(&mut record).map_err(wrong)? {
                break;
            }
            let length = reader.position().byte() - from;
            let line = record.position().map_or(0, csv::Position::line);
            let object = table.object(&record);
            if table.fields.keeps(&object) {
                let place = || format!("{} line {line}", config.path);
                labels.push(table.fields.label(&object, place)?, &config.path)?;
                table.rows.push(Row { line, span: Span { offset: from, length } });
            }
        }
        Ok((table, labels))
    }

    /// A row as an object of its columns; a label of digits is a number.
    fn object(&self, record: &StringRecord) -> Value {
        let mut object = Map::new();
        for (name, value) in self.columns.iter().zip(record) {
            let is_label = self.fields.label.as_ref() == Some(name);
            let value = match value.parse::<u32>() {
                Ok(index) if is_label => Value::from(index),
                _ => Value::from(value),
            };
            object.insert(name.clone(), value);
        }
        Value::Object(object)
    }

    fn record(&self, index: usize) -> Result<StringRecord> {
        let bytes = self.rows[index].span.read(&self.path)?;
        let mut reader =
            ReaderBuilder::new().has_headers(false).delimiter(self.separator).from_reader(&*bytes);
        let mut record = StringRecord::new();
        reader.read_record(&mut record).map_err(|error| row_error(error, &self.path))?;
        Ok(record)
    }
}

impl Source for Table {
    fn annotation(&self, index: usize) -> Result<Annotation> {
        let record = self.record(index)?;
        let meta = self.object(&record);
        let captions = self.fields.captions(&meta, || self.place(index))?;
        let key = record.get(self.picture).unwrap_or_default().to_owned();
        Ok(Annotation { key, captions, label: None, meta })
    }

    fn picture(&self, index: usize) -> Result<Vec<u8>> {
        let record = self.record(index)?;
        read_picture(&self.root.join(record.get(self.picture).unwrap_or_default()))
    }

    fn place(&self, index: usize) -> String {
        format!("{} line {}", self.path.display(), self.rows[index].line)
    }
}

fn row_error(error: csv::Error, path: &std::path::Path) -> DatasetError {
    let line = error.position().map_or(1, csv::Position::line);
    let problem = match error.into_kind() {
        ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => {
            let place = format!("{}: a row", path.display());
            return DatasetError::TooLong { place, limit: MAX_TEXT };
        }
        ErrorKind::Io(source) => return DatasetError::Io { path: path.to_path_buf(), source },
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} columns, expected {expected_len} as in the header")
        }
        ErrorKind::Utf8 { err, .. } => format!("column {} is not UTF-8", err.field() + 1),
        other => format!("{other:?}"),
    };
    DatasetError::Row { path: path.to_path_buf(), line, problem }
}

/// Fails when more is read than was allowed since `left` was last set: a row with a quote that is
/// never closed must not fill the memory.
struct Metered<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let end = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let length = self.inner.read(&mut buffer[..end])?;
        self.left -= length as u64;
        Ok(length)
    }
}
