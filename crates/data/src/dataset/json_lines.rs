//! One JSON object a line: `{"image": "a.png", "caption": "a house"}`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
};

use serde_json::Value;

use super::{
    classes::Labels,
    config::SourceConfig,
    error::{DatasetError, Result},
    fields::{Fields, object},
    source::{Annotation, MAX_TEXT, Source, Span, read_picture},
};

pub(super) struct JsonLines {
    path: PathBuf,
    root: PathBuf,
    picture_key: String,
    fields: Fields,
    lines: Vec<Line>,
}

struct Line {
    /// From 1.
    number: u64,
    span: Span,
}

impl JsonLines {
    pub(super) fn open(config: &SourceConfig) -> Result<(Self, Labels)> {
        let path = PathBuf::from(&config.path);
        let io = |source| DatasetError::Io { path: path.clone(), source };
        let mut file = BufReader::new(File::open(&path).map_err(io)?);
        let picture_key = config.picture_key.clone().unwrap_or_else(|| "image".to_owned());
        let fields = Fields::new(config, &["caption", "text"], Some("label"));
        let mut source = Self {
            path: path.clone(),
            root: config.root(),
            picture_key,
            fields,
            lines: Vec::new(),
        };
        let mut labels = Labels::default();
        let (mut offset, mut bytes) = (0, Vec::new());
        for number in 1.. {
            bytes.clear();
            let length =
                file.by_ref().take(MAX_TEXT + 1).read_until(b'\n', &mut bytes).map_err(io)?;
            if length == 0 {
                break;
            }
            let place = || format!("{} line {number}", config.path);
            if length as u64 > MAX_TEXT {
                return Err(DatasetError::TooLong { place: place(), limit: MAX_TEXT });
            }
            let line = Line { number, span: Span { offset, length: length as u64 } };
            offset += length as u64;
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let object = object(&bytes, place)?;
            source.picture_path(&object, number)?;
            source.fields.captions(&object, place)?;
            if source.fields.keeps(&object) {
                labels.push(source.fields.label(&object, place)?, &config.path)?;
                source.lines.push(line);
            }
        }
        Ok((source, labels))
    }

    /// Where the picture of an object is.
    fn picture_path(&self, object: &Value, line: u64) -> Result<PathBuf> {
        let value = object.get(&self.picture_key).unwrap_or(&Value::Null);
        let name = value.as_str().ok_or_else(|| DatasetError::Field {
            place: format!("{} line {line}", self.path.display()),
            field: self.picture_key.clone(),
            found: value.to_string().chars().take(60).collect(),
            expected: "the path of a picture",
        })?;
        Ok(self.root.join(name))
    }

    fn object(&self, index: usize) -> Result<Value> {
        object(&self.lines[index].span.read(&self.path)?, || self.place(index))
    }
}

impl Source for JsonLines {
    fn annotation(&self, index: usize) -> Result<Annotation> {
        let meta = self.object(index)?;
        let key =
            meta.get(&self.picture_key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let captions = self.fields.captions(&meta, || self.place(index))?;
        Ok(Annotation { key, captions, label: None, meta })
    }

    fn picture(&self, index: usize) -> Result<Vec<u8>> {
        read_picture(&self.picture_path(&self.object(index)?, self.lines[index].number)?)
    }

    fn place(&self, index: usize) -> String {
        format!("{} line {}", self.path.display(), self.lines[index].number)
    }
}
