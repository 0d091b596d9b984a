//! The safetensors format: a JSON header of names, types, shapes and offsets, then the bytes.
//! The `safetensors` crate validates the header (size limit, overlaps, holes, overflow); this
//! file adds the check for repeated names and an atomic, streaming writer.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ::safetensors::{Dtype as FileDtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::destination::destination;
use super::dtype::Dtype;
use super::entry::{Entry, Source};
use super::error::{Error, Result};
use super::{Contents, TensorView};

const FORMAT: &str = "safetensors";
/// The header starts after its own length, a u64.
const HEADER_AT: usize = 8;

/// Reads the header of a safetensors file.
pub(super) fn read(path: &Path, file: &[u8]) -> Result<Contents> {
    let damaged =
        |reason: String| Error::Malformed { path: path.to_path_buf(), format: FORMAT, reason };
    let (header_len, header) =
        SafeTensors::read_metadata(file).map_err(|e| damaged(e.to_string()))?;
    let data_at = HEADER_AT + header_len;
    serde_json::from_slice::<UniqueKeys>(&file[HEADER_AT..data_at])
        .map_err(|e| damaged(e.to_string()))?;

    let mut contents = Contents::default();
    for (name, info) in header.tensors() {
        let dtype = known(info.dtype).ok_or_else(|| Error::Dtype {
            path: path.to_path_buf(),
            tensor: name.clone(),
            found: format!("{:?}", info.dtype).to_lowercase(),
            expected: "f32, f16, bf16, f64, i64, i32, i16, i8, u8 or bool",
        })?;
        let (start, end) = info.data_offsets;
        let source = Source::Stored(data_at + start..data_at + end);
        let entry = Entry::contiguous(dtype, info.shape.clone(), source, 0).map_err(|reason| {
            Error::Tensor { path: path.to_path_buf(), tensor: name.clone(), reason }
        })?;
        contents.entries.insert(name, entry);
    }
    contents.metadata.extend(header.metadata().clone().into_iter().flatten());
    Ok(contents)
}

/// Accepts any JSON object whose keys differ.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if let Some(twice) = seen.replace(key) {
                        return Err(A::Error::custom(format!("tensor {twice} is listed twice")));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

fn known(dtype: FileDtype) -> Option<Dtype> {
    Some(match dtype {
        FileDtype::F32 => Dtype::F32,
        FileDtype::F16 => Dtype::F16,
        FileDtype::BF16 => Dtype::Bf16,
        FileDtype::F64 => Dtype::F64,
        FileDtype::I64 => Dtype::I64,
        FileDtype::I32 => Dtype::I32,
        FileDtype::I16 => Dtype::I16,
        FileDtype::I8 => Dtype::I8,
        FileDtype::U8 => Dtype::U8,
        FileDtype::BOOL => Dtype::Bool,
        _ => return None,
    })
}

fn file_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::F64 => "F64",
        Dtype::I64 => "I64",
        Dtype::I32 => "I32",
        Dtype::I16 => "I16",
        Dtype::I8 => "I8",
        Dtype::U8 => "U8",
        Dtype::Bool => "BOOL",
        Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q4_1 | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => {
            return None;
        }
    })
}

/// Writes `tensors` and `metadata` as a safetensors file.
///
/// The write is atomic: a file beside `path` is written, flushed to the disk and renamed, so that
/// a reader or a crash sees the old file or the new one. Memory beyond the tensors themselves is
/// the header's. A link at `path` stays, and what it points to is replaced. Wider element types come first, so that every tensor starts aligned.
///
/// # Errors
/// [`Error::Tensor`] if bytes and shape of a tensor disagree or a name repeats, [`Error::Io`] if
/// the system refuses.
pub fn save_safetensors(
    path: &Path,
    tensors: &[TensorView<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let header = header(path, tensors, metadata)?;
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let target = destination(path).map_err(io)?;
    let temporary = temporary_beside(&target);
    let written =
        write(&temporary, &header, tensors).and_then(|()| fs::rename(&temporary, &target));
    if let Err(source) = written {
        // The first failure is the one to report; a leftover file is only untidy.
        let _ = fs::remove_file(&temporary);
        return Err(io(source));
    }
    sync_directory(&target).map_err(io)
}

/// The order in which tensors are stored: wider elements first, then by name.
fn stored_order<'a, 'b>(tensors: &'b [TensorView<'a>]) -> Vec<&'b TensorView<'a>> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|t| (std::cmp::Reverse(t.dtype.size()), t.name));
    order
}

fn header(
    path: &Path,
    tensors: &[TensorView<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for t in stored_order(tensors) {
        let wrong =
            |reason| Error::Tensor { path: path.to_path_buf(), tensor: t.name.into(), reason };
        let expected = t.shape.iter().try_fold(t.dtype.size(), |bytes, &n| bytes.checked_mul(n));
        if expected != Some(t.bytes.len()) {
            let (dtype, shape, found) = (t.dtype, t.shape, t.bytes.len());
            return Err(wrong(format!("{found} bytes given for {dtype} {shape:?}")));
        }
        let Some(dtype) = file_name(t.dtype) else {
            return Err(wrong(format!("{} is not a type of safetensors", t.dtype)));
        };
        let start = end;
        end += t.bytes.len();
        let info = json!({
            "dtype": dtype, "shape": t.shape, "data_offsets": [start, end],
        });
        if t.name == "__metadata__" || header.insert(t.name.into(), info).is_some() {
            return Err(wrong("the name is reserved or given twice".into()));
        }
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(HEADER_AT), b' ');
    Ok(bytes)
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

fn write(path: &Path, header: &[u8], tensors: &[TensorView<'_>]) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header)?;
    for tensor in stored_order(tensors) {
        out.write_all(tensor.bytes)?;
    }
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

/// Makes the rename itself durable; only Unix lets a directory be opened for it.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}
