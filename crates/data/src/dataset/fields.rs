//! Captions, class and filter of a sample from its JSON object; rows of tables become objects too.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    classes::{Label, MAX_CLASSES},
    config::SourceConfig,
    error::{DatasetError, Result},
};

/// Which keys mean what.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) captions: Vec<String>,
    pub(super) label: Option<String>,
    conditions: BTreeMap<String, Value>,
}

impl Fields {
    /// The keys of `config`, and the given ones where it names none.
    pub(super) fn new(config: &SourceConfig, captions: &[&str], label: Option<&str>) -> Self {
        let defaults = || captions.iter().map(|&key| key.to_owned()).collect();
        Self {
            captions: config.caption_keys.clone().unwrap_or_else(defaults),
            label: config.label_key.clone().or_else(|| label.map(str::to_owned)),
            conditions: config.conditions.clone(),
        }
    }

    /// Whether the index needs to look into the objects.
    pub(super) fn matter_to_index(&self) -> bool {
        self.label.is_some() || !self.conditions.is_empty()
    }

    pub(super) fn keeps(&self, object: &Value) -> bool {
        self.conditions.iter().all(|(key, wanted)| match (object.get(key), wanted) {
            (Some(Value::Number(value)), Value::Number(wanted)) => {
                value.as_f64() == wanted.as_f64()
            }
            // Tables have nothing but strings.
            (Some(Value::String(value)), Value::Bool(wanted)) => value.parse() == Ok(*wanted),
            (Some(Value::String(value)), Value::Number(wanted)) => {
                value.parse().ok() == wanted.as_f64()
            }
            (Some(value), wanted) => value == wanted,
            (None, _) => false,
        })
    }

    /// One list for each caption key that has any.
    pub(super) fn captions(
        &self,
        object: &Value,
        place: impl Fn() -> String,
    ) -> Result<Vec<Vec<String>>> {
        let mut all = Vec::new();
        for key in &self.captions {
            let wrong = |value: &Value| DatasetError::Field {
                place: place(),
                field: key.clone(),
                found: shown(value),
                expected: "a string or a list of strings",
            };
            let captions = match object.get(key) {
                None | Some(Value::Null) => continue,
                Some(Value::String(caption)) => vec![caption.clone()],
                Some(Value::Array(captions)) => captions
                    .iter()
                    .map(|caption| {
                        caption.as_str().map(str::to_owned).ok_or_else(|| wrong(caption))
                    })
                    .collect::<Result<Vec<_>>>()?,
                Some(value) => return Err(wrong(value)),
            };
            let captions: Vec<String> =
                captions.into_iter().filter(|caption| !caption.trim().is_empty()).collect();
            if !captions.is_empty() {
                all.push(captions);
            }
        }
        Ok(all)
    }

    pub(super) fn label(&self, object: &Value, place: impl Fn() -> String) -> Result<Label> {
        let Some(key) = &self.label else { return Ok(Label::None) };
        let index = |value: &Value| {
            let index = value.as_u64().and_then(|index| u32::try_from(index).ok());
            index.filter(|&index| index < MAX_CLASSES)
        };
        match object.get(key) {
            None | Some(Value::Null) => Ok(Label::None),
            Some(Value::String(name)) => Ok(Label::Name(name.clone())),
            Some(value) => match index(value) {
                Some(index) => Ok(Label::Index(index)),
                None => Err(DatasetError::Field {
                    place: place(),
                    field: key.clone(),
                    found: shown(value),
                    expected: "the name of a class or its number, from 0 to 16777215",
                }),
            },
        }
    }
}

/// An object from its text.
pub(super) fn object(bytes: &[u8], place: impl Fn() -> String) -> Result<Value> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(value) if value.is_object() => Ok(value),
        Ok(value) => Err(DatasetError::Json { place: place(), problem: shown(&value) }),
        Err(error) => Err(DatasetError::Json { place: place(), problem: error.to_string() }),
    }
}

/// A value for a message, cut after 60 characters.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
