//! Fields of a configuration, read with errors that name them.

use crate::{Error, Result};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::Path;

/// Reads fields of a configuration and names them in errors.
pub(super) struct Fields<'a> {
    file: &'a Path,
    path: String,
    pub(super) value: &'a Value,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, file: &'a Path) -> Self {
        Self { file, path: String::new(), value }
    }

    /// A section; an absent one has no fields.
    pub(super) fn section(&self, name: &str) -> Self {
        static NULL: Value = Value::Null;
        let value = self.value.get(name).unwrap_or(&NULL);
        Self { file: self.file, path: format!("{}{name}.", self.path), value }
    }

    /// Other fields of the same file.
    pub(super) fn with(&self, value: &'a Value) -> Self {
        Self { file: self.file, path: String::new(), value }
    }

    pub(super) fn error(&self, field: &str, reason: impl Into<String>) -> Error {
        let field = format!("{}{field}", self.path);
        Error::Config { file: self.file.to_owned(), field, reason: reason.into() }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.value.get(field).filter(|v| !v.is_null())
    }

    /// A size between 1 and 2^20.
    pub(super) fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        let Some(value) = self.get(field) else {
            return default.ok_or_else(|| self.error(field, "is missing"));
        };
        value.as_u64().filter(|n| (1..=1 << 20).contains(n)).map(|n| n as usize).ok_or_else(|| {
            self.error(field, format!("expected a whole number from 1 to 1048576, got {value}"))
        })
    }

    /// A number of blocks, at most 1,000.
    pub(super) fn blocks(&self, field: &str, default: Option<usize>) -> Result<usize> {
        let blocks = self.size(field, default)?;
        if blocks > 1000 {
            return Err(self.error(field, format!("expected at most 1000 blocks, got {blocks}")));
        }
        Ok(blocks)
    }

    /// One size for both sides, or `[height, width]`.
    pub(super) fn sides(&self, field: &str, default: usize) -> Result<(usize, usize)> {
        let side = |v: &Value| v.as_u64().filter(|n| (1..=1 << 14).contains(n)).map(|n| n as usize);
        match self.get(field) {
            None => Ok((default, default)),
            Some(Value::Array(sides)) => match &sides[..] {
                [h, w] => side(h).zip(side(w)),
                _ => None,
            }
            .ok_or_else(|| self.error(field, "expected [height, width] in pixels")),
            Some(v) => side(v).map(|s| (s, s)).ok_or_else(|| {
                self.error(field, format!("expected a side from 1 to 16384 pixels, got {v}"))
            }),
        }
    }

    pub(super) fn number(&self, field: &str, default: f64) -> Result<f64> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v
                .as_f64()
                .filter(|n| n.is_finite())
                .ok_or_else(|| self.error(field, format!("expected a number, got {v}"))),
        }
    }

    /// What a norm adds to a variance: finite and more than 0, or a constant input divides by 0.
    pub(super) fn epsilon(&self, field: &str, default: f64) -> Result<f32> {
        let value = self.number(field, default)? as f32;
        if value > 0.0 && value.is_finite() {
            return Ok(value);
        }
        Err(self.error(field, format!("expected a number over 0, got {value}")))
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.error(field, format!("expected true or false, got {v}"))),
        }
    }

    /// Refuses a key that would change the result and is not read: one that is in none of the lists,
    /// or in `only` with another value than the one, as JSON, that is built here. An absent key and
    /// `null` ask for nothing.
    pub(super) fn check_keys(
        &self,
        read: &[&str],
        harmless: &[&str],
        only: &[&[(&str, &[&str])]],
    ) -> Result<()> {
        for (key, value) in self.value.as_object().into_iter().flatten() {
            let key = key.as_str();
            if value.is_null() || read.contains(&key) || harmless.contains(&key) {
                continue;
            }
            let Some((_, values)) = only.iter().copied().flatten().find(|(name, _)| *name == key)
            else {
                let reason =
                    format!("{value} is not understood; leave it out only if it changes nothing");
                return Err(self.error(key, reason));
            };
            let is_same =
                |text: &&str| serde_json::from_str::<Value>(text).is_ok_and(|v| v == *value);
            if !values.iter().any(is_same) {
                let expected = values.join(" or ");
                return Err(
                    self.error(key, format!("{value} is not supported; expected {expected}"))
                );
            }
        }
        Ok(())
    }

    /// An id of a token.
    pub(super) fn id(&self, field: &str, default: u32) -> Result<u32> {
        match self.get(field) {
            None => Ok(default),
            Some(v) => v
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.error(field, format!("expected the id of a token, got {v}"))),
        }
    }

    pub(super) fn text(&self, field: &str) -> Option<&'a str> {
        self.get(field).and_then(Value::as_str)
    }

    /// An activation by the name that transformers gives it.
    pub(super) fn activation(&self, field: &str, default: &str) -> Result<Activation> {
        Ok(match self.text(field).unwrap_or(default) {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                let known = "gelu, gelu_new, quick_gelu, relu or silu";
                return Err(self.error(field, format!("expected {known}, got `{other}`")));
            }
        })
    }

    /// Heads that divide `width`.
    pub(super) fn heads(&self, field: &str, width: usize, default: Option<usize>) -> Result<usize> {
        let heads = self.size(field, default)?;
        if !width.is_multiple_of(heads) {
            return Err(
                self.error(field, format!("{heads} heads do not divide a width of {width}"))
            );
        }
        Ok(heads)
    }
}
