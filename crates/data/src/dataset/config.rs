//! Where samples come from, as a recipe says it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    error::{DatasetError, Result},
    shard_names::shard_names,
};

/// How a source is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A folder of pictures, one subfolder a class; the caption is the name of the class.
    Folder,
    /// CSV or TSV with a header.
    Table,
    /// One JSON object a line.
    JsonLines,
    /// WebDataset tar shards: members with the same name up to the first dot make a sample.
    Shards,
}

/// One entry of `[[data.sources]]`.
///
/// ```
/// # use ocelli_data::dataset::SourceConfig;
/// # let text = r#"
/// {"path": "drawings/train-{0000..0004}.tar", "weight": 2.0,
///  "caption_keys": ["captions_en", "captions_zh"], "where": {"heldout": false}}
/// # "#;
/// # let config: SourceConfig = serde_json::from_str(text).unwrap();
/// # assert_eq!(config.weight, 2.0);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// A folder, a table, a file of JSON lines, or shards such as `a-{000..127}.tar::b.tar`.
    pub path: String,
    /// Told by the path when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// How often a sample comes in an epoch: 2 shows all of them twice, 0.25 a quarter of them,
    /// another quarter every time.
    #[serde(default = "one")]
    pub weight: f64,
    /// Column or key that holds the path of the picture. `filepath` in tables, `image` in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture_key: Option<String>,
    /// Columns or keys that hold a caption or a list of captions. A key is drawn among those that
    /// hold any, then a caption of it. `title` in tables, `caption` and `text` in JSON; a `.txt`
    /// member of a shard is a caption in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_keys: Option<Vec<String>>,
    /// Column or key that holds the class: its name, or its index as an integer. Folders and `.cls`
    /// members of shards have theirs without it; `label` in JSON lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_key: Option<String>,
    /// Between the columns of a table. A comma in `.csv`, a tab otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<char>,
    /// Folder that picture paths start from; that of the table or the JSON lines when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Only samples whose columns or keys have these values.
    #[serde(default, rename = "where", skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, Value>,
}

fn one() -> f64 {
    1.0
}

impl SourceConfig {
    /// A source with everything else as told by its path.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            kind: None,
            weight: 1.0,
            picture_key: None,
            caption_keys: None,
            label_key: None,
            separator: None,
            root: None,
            conditions: BTreeMap::new(),
        }
    }

    /// The layout, from the path unless it is set.
    ///
    /// # Errors
    /// When the path does not tell.
    pub fn kind(&self) -> Result<Kind> {
        if let Some(kind) = self.kind {
            return Ok(kind);
        }
        if Path::new(&self.path).is_dir() {
            return Ok(Kind::Folder);
        }
        match self.extension().as_deref() {
            Some("csv" | "tsv") => Ok(Kind::Table),
            Some("jsonl" | "ndjson") => Ok(Kind::JsonLines),
            Some("tar") => Ok(Kind::Shards),
            _ => Err(DatasetError::UnknownKind { path: self.path.clone() }),
        }
    }

    /// The files and folders that the path names: each shard, or the path itself.
    ///
    /// # Errors
    /// When braces in the path cannot be expanded.
    pub fn paths(&self) -> Result<Vec<PathBuf>> {
        let is_shards = self.kind == Some(Kind::Shards)
            || self.kind.is_none() && self.extension().as_deref() == Some("tar");
        if is_shards && !Path::new(&self.path).is_dir() {
            return Ok(shard_names(&self.path)?.into_iter().map(PathBuf::from).collect());
        }
        Ok(vec![PathBuf::from(&self.path)])
    }

    /// The first of [`SourceConfig::paths`] that is not there.
    ///
    /// # Errors
    /// As for it.
    pub fn missing_path(&self) -> Result<Option<PathBuf>> {
        Ok(self.paths()?.into_iter().find(|path| !path.exists()))
    }

    fn extension(&self) -> Option<String> {
        Path::new(&self.path).extension()?.to_str().map(str::to_ascii_lowercase)
    }

    /// The separator of a table, one byte.
    pub(super) fn separator(&self) -> Result<u8> {
        let by_extension = if self.extension().as_deref() == Some("csv") { ',' } else { '\t' };
        let separator = self.separator.unwrap_or(by_extension);
        u8::try_from(separator).ok().filter(|v| v.is_ascii() && !b"\"\r\n".contains(v)).ok_or_else(
            || DatasetError::Config {
                field: "separator",
                found: format!("{separator:?}"),
                expected: "one ASCII character that is no quote and no line break",
            },
        )
    }

    /// The folder that picture paths start from.
    pub(super) fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(|| {
            Path::new(&self.path).parent().map(Path::to_path_buf).unwrap_or_default()
        })
    }

    pub(super) fn check_weight(&self) -> Result<()> {
        if self.weight > 0.0 && self.weight <= 1e6 {
            return Ok(());
        }
        Err(DatasetError::Config {
            field: "weight",
            found: self.weight.to_string(),
            expected: "above 0 and at most 1000000",
        })
    }
}
