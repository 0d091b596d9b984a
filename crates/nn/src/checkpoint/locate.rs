//! Which files hold the weights of a model directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::{Error, Result};

/// The names that mean "the weights", best first; the order is documented at `Checkpoint::open`.
pub(super) const NAMED: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
];
/// Then the only file with one of these endings, group by group.
const ENDINGS: [&[&str]; 4] = [&["npz"], &["pt", "pth"], &["safetensors"], &["gguf"]];
const INDEX_SUFFIX: &str = ".index.json";
/// An index lists names and shards; the largest published ones are below 1 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The files to read, and where an index says that each tensor is.
#[derive(Default)]
pub(super) struct Located {
    pub(super) files: Vec<PathBuf>,
    pub(super) index: BTreeMap<String, PathBuf>,
}

/// Finds the weights of `path`, a file or a model directory.
pub(super) fn weights(path: &Path) -> Result<Located> {
    let kind = fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let file = if kind.is_dir() { in_directory(path)? } else { path.to_path_buf() };
    if file.to_string_lossy().ends_with(INDEX_SUFFIX) {
        return shards(&file);
    }
    Ok(Located { files: vec![file], index: BTreeMap::new() })
}

fn in_directory(dir: &Path) -> Result<PathBuf> {
    if let Some(found) = NAMED.iter().map(|name| dir.join(name)).find(|file| file.is_file()) {
        return Ok(found);
    }
    let io = |source| Error::Io { path: dir.to_path_buf(), source };
    let mut names = Vec::new();
    for item in fs::read_dir(dir).map_err(io)? {
        let name = PathBuf::from(item.map_err(io)?.file_name());
        // Stored results and moments of optimisers lie beside weights and are none.
        let is_other =
            ["golden.safetensors", "optimizer.safetensors"].iter().any(|o| name == Path::new(o));
        if !is_other && dir.join(&name).is_file() {
            names.push(name);
        }
    }
    names.sort();
    for endings in ENDINGS {
        let found: Vec<&PathBuf> = names
            .iter()
            .filter(|name| name.extension().is_some_and(|e| endings.iter().any(|end| e == *end)))
            .collect();
        match found[..] {
            [] => {}
            [only] => return Ok(dir.join(only)),
            _ => {
                let found = found.iter().map(|name| name.display().to_string()).collect();
                return Err(Error::Ambiguous { dir: dir.to_path_buf(), found });
            }
        }
    }
    let looked_for = format!("{}, *.npz, *.pt, *.pth, *.safetensors, *.gguf", NAMED.join(", "));
    Err(Error::NoWeights { dir: dir.to_path_buf(), looked_for })
}

/// The shards that an index file names.
fn shards(index: &Path) -> Result<Located> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let io = |source| Error::Io { path: index.to_path_buf(), source };
    let damaged = |reason: String| Error::Malformed {
        path: index.to_path_buf(),
        format: "shard index",
        reason,
    };
    let size = fs::metadata(index).map_err(io)?.len();
    if size > MAX_INDEX_BYTES {
        let path = index.to_path_buf();
        let what = "the size of a shard index, in bytes,";
        return Err(Error::Limit { path, what, found: size, limit: MAX_INDEX_BYTES });
    }
    let text = fs::read(index).map_err(io)?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    let mut files = BTreeSet::new();
    let mut located = Located::default();
    for (tensor, shard) in parsed.weight_map {
        // A shard lies beside its index and nowhere else.
        if shard.is_empty() || shard.contains(['/', '\\']) || shard == ".." {
            return Err(damaged(format!("tensor {tensor} names the shard {shard:?}")));
        }
        let file = index.with_file_name(shard);
        files.insert(file.clone());
        located.index.insert(tensor, file);
    }
    located.files = files.into_iter().collect();
    Ok(located)
}
