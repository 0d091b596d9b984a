//! The GGUF format of llama.cpp, versions 2 and 3: typed metadata (configuration and tokenizer), a
//! list of tensors, then their bytes, many of them in blocks of few bits.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Number, Value};

use super::Contents;
use super::dtype::Dtype;
use super::entry::{Entry, Source};
use super::error::{Error, Result};
use super::region::Region;

const FORMAT: &str = "GGUF";
pub(super) const MAGIC: &[u8] = b"GGUF";
/// Metadata values, those of lists included; the largest vocabularies with their merges have a
/// quarter of it.
const MAX_VALUES: u64 = 1 << 22;
/// Lists within lists.
const MAX_DEPTH: usize = 4;
/// Axes of a tensor.
const MAX_AXES: u32 = 4;
/// Where tensors begin, if the metadata do not say: at multiples of it, in bytes.
const USUAL_ALIGNMENT: u64 = 32;
/// The largest alignment, in bytes.
const MAX_ALIGNMENT: u64 = 1 << 16;

/// The metadata of a file: numbers, texts and lists of them, by key.
///
/// # Errors
/// If the file cannot be read, or is not such a file.
pub fn metadata(path: &Path) -> Result<Map<String, Value>> {
    let region = Region::map(path)?;
    let mut reader = Reader { path, file: region.as_slice(), at: 0, values: 0 };
    let counts = reader.header()?;
    reader.metadata(counts.metadata)
}

/// Whether a file begins as one of this format does.
pub fn is_gguf(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    let read =
        std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut start));
    read.is_ok() && start == *MAGIC
}

/// Reads the header of a file.
pub(super) fn read(path: &Path, file: &[u8]) -> Result<Contents> {
    let mut reader = Reader { path, file, at: 0, values: 0 };
    let counts = reader.header()?;
    let metadata = reader.metadata(counts.metadata)?;
    let alignment = match metadata.get("general.alignment") {
        None => USUAL_ALIGNMENT,
        Some(value) => value
            .as_u64()
            .filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT)
            .ok_or_else(|| reader.damaged(format!("alignment {value} is no power of two")))?,
    };
    let mut infos = BTreeMap::new();
    for _ in 0..counts.tensors {
        let (name, info) = reader.tensor()?;
        if infos.insert(name.clone(), info).is_some() {
            return Err(reader.damaged(format!("tensor {name} is listed twice")));
        }
    }
    let data_at = (reader.at as u64).next_multiple_of(alignment);
    let mut contents = Contents::default();
    for (name, info) in infos {
        let wrong =
            |reason| Error::Tensor { path: path.to_path_buf(), tensor: name.clone(), reason };
        let dtype = dtype(info.kind).ok_or_else(|| Error::Dtype {
            path: path.to_path_buf(),
            tensor: name.clone(),
            found: format!("number {} of GGUF", info.kind),
            expected: "f32, f16, bf16, q8_0, q4_0, q4_1, q4_k, q5_k or q6_k",
        })?;
        if info.offset % alignment != 0 {
            return Err(wrong(format!("offset {} is not a multiple of {alignment}", info.offset)));
        }
        let start = data_at
            .checked_add(info.offset)
            .and_then(|at| usize::try_from(at).ok())
            .filter(|at| *at <= file.len())
            .ok_or_else(|| wrong(format!("offset {} lies behind the file's end", info.offset)))?;
        let source = Source::Stored(start..file.len());
        let entry = Entry::contiguous(dtype, info.shape, source, 0).map_err(wrong)?;
        contents.entries.insert(name, entry);
    }
    for (key, value) in metadata {
        let text = match value {
            Value::String(text) => text,
            Value::Array(list) => format!("{} values", list.len()),
            value => value.to_string(),
        };
        contents.metadata.insert(key, text);
    }
    Ok(contents)
}

fn dtype(number: u32) -> Option<Dtype> {
    Some(match number {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Q4_0,
        3 => Dtype::Q4_1,
        8 => Dtype::Q8_0,
        12 => Dtype::Q4K,
        13 => Dtype::Q5K,
        14 => Dtype::Q6K,
        24 => Dtype::I8,
        25 => Dtype::I16,
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::Bf16,
        _ => return None,
    })
}

struct Counts {
    tensors: u64,
    metadata: u64,
}

struct TensorInfo {
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

struct Reader<'a> {
    path: &'a Path,
    file: &'a [u8],
    at: usize,
    /// Metadata values so far.
    values: u64,
}

impl<'a> Reader<'a> {
    fn damaged(&self, reason: String) -> Error {
        Error::Malformed { path: self.path.to_path_buf(), format: FORMAT, reason }
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8]> {
        let rest = &self.file[self.at..];
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len)).ok_or_else(|| {
            let at = self.at;
            self.damaged(format!("{len} bytes are missing from byte {at} on"))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes(N as u64)?;
        Ok(bytes.try_into().expect("just so many bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String> {
        let len = self.u64()?;
        let at = self.at;
        let bytes = self.bytes(len)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|_| self.damaged(format!("text at byte {at} is no UTF-8")))
    }

    fn header(&mut self) -> Result<Counts> {
        if self.bytes(MAGIC.len() as u64)? != MAGIC {
            return Err(self.damaged("it does not begin with GGUF".to_owned()));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Error::Unsupported {
                path: self.path.to_path_buf(),
                found: format!("version {version} of GGUF"),
                action: "convert the model again with a current llama.cpp, little-endian",
            });
        }
        Ok(Counts { tensors: self.u64()?, metadata: self.u64()? })
    }

    fn metadata(&mut self, count: u64) -> Result<Map<String, Value>> {
        let mut metadata = Map::new();
        for _ in 0..count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.damaged(format!("key {key} is listed twice")));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        self.values += 1;
        if self.values > MAX_VALUES {
            let (path, what) = (self.path.to_path_buf(), "the number of metadata values");
            return Err(Error::Limit { path, what, found: self.values, limit: MAX_VALUES });
        }
        // A number that JSON has not (infinity) is as good as none.
        let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => float(f32::from_le_bytes(self.array()?).into()),
            7 => (self.array::<1>()? != [0]).into(),
            8 => self.text()?.into(),
            9 if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Grown as values arrive: a false count costs nothing.
                let mut list = Vec::new();
                for _ in 0..count {
                    list.push(self.value(kind, depth + 1)?);
                }
                list.into()
            }
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => float(f64::from_le_bytes(self.array()?)),
            _ => return Err(self.damaged(format!("metadata of the unknown type {kind}"))),
        })
    }

    fn tensor(&mut self) -> Result<(String, TensorInfo)> {
        let name = self.text()?;
        let axes = self.u32()?;
        if axes > MAX_AXES {
            return Err(self.damaged(format!("tensor {name} has {axes} axes, at most {MAX_AXES}")));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let len = self.u64()?;
            let len = usize::try_from(len);
            shape.push(len.map_err(|_| self.damaged(format!("tensor {name} is too large")))?);
        }
        // The innermost axis stands first.
        shape.reverse();
        Ok((name, TensorInfo { shape, kind: self.u32()?, offset: self.u64()? }))
    }
}
