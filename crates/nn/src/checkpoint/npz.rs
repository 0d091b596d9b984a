//! NumPy archives: a zip of `.npy` members, as `numpy.savez` and the JAX checkpoints of ViT write.
//! Structured and object arrays are refused.

use std::collections::BTreeMap;
use std::path::Path;

use super::Contents;
use super::dtype::Dtype;
use super::entry::{Entry, MAX_RANK, Source, row_major};
use super::error::{Error, Result};

const MAGIC: &[u8] = b"\x93NUMPY";
/// The most that the header of one array may take, in bytes; `numpy` writes about 100.
const MAX_HEADER: usize = 64 << 10;

/// Reads the headers of an archive's arrays.
pub(super) fn read(
    path: &Path,
    file: &[u8],
    members: &BTreeMap<String, Source>,
) -> Result<Contents> {
    let mut contents = Contents::default();
    for (member, source) in members {
        let Some(name) = member.strip_suffix(".npy") else { continue };
        let entry = array(path, name, file, source)?;
        contents.entries.insert(name.to_owned(), entry);
    }
    if contents.entries.is_empty() {
        let names = members.keys().take(5).cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            found: format!("a zip archive of [{names}]"),
            action: "give an archive of torch.save (data.pkl) or numpy.savez (*.npy)",
        });
    }
    Ok(contents)
}

fn array(path: &Path, name: &str, file: &[u8], source: &Source) -> Result<Entry> {
    let wrong =
        |reason: String| Error::Tensor { path: path.to_path_buf(), tensor: name.into(), reason };
    let head = source.read(file, MAX_HEADER).map_err(wrong)?;
    let (text, data_at) =
        header(&head).ok_or_else(|| wrong("no complete NumPy header of at most 64 KiB".into()))?;
    let header = Header::parse(text)
        .ok_or_else(|| wrong(format!("cannot read the NumPy header {text:?}")))?;
    let dtype = element(header.descr).ok_or_else(|| Error::Dtype {
        path: path.to_path_buf(),
        tensor: name.into(),
        found: match header.descr.as_bytes() {
            [b'>', ..] => format!("{:?} (big-endian)", header.descr),
            [_, b'O', ..] => format!("{:?} (pickled objects)", header.descr),
            _ => format!("{:?}", header.descr),
        },
        expected: "a little-endian <f4, <f8, <f2, <i8, <i4, <i2, |i1, |u1 or |b1",
    })?;
    let shape = header.shape;
    let strides = if header.fortran_order {
        // Column-major is row-major over the axes in reverse.
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        row_major(&reversed).map(|strides| strides.into_iter().rev().collect())
    } else {
        row_major(&shape)
    };
    let strides: Vec<usize> = strides.ok_or_else(|| wrong(format!("shape {shape:?} overflows")))?;
    let entry = Entry::strided(dtype, shape, &strides, source.clone(), data_at).map_err(wrong)?;
    if entry.size() != source.len() - data_at {
        let (shape, found) = (&entry.shape, source.len() - data_at);
        return Err(wrong(format!("{found} bytes stored for {dtype} {shape:?}")));
    }
    Ok(entry)
}

/// The header's text and the position of the data.
fn header(head: &[u8]) -> Option<(&str, usize)> {
    let rest = head.strip_prefix(MAGIC)?;
    let (len, at) = match rest {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        _ => return None,
    };
    let end = len.checked_add(at)?;
    Some((std::str::from_utf8(head.get(at..end)?).ok()?, end))
}

fn element(descr: &str) -> Option<Dtype> {
    Some(match descr {
        "<f4" => Dtype::F32,
        "<f8" => Dtype::F64,
        "<f2" => Dtype::F16,
        // JAX writes bfloat16 arrays as two opaque bytes.
        "|V2" | "<V2" => Dtype::Bf16,
        "<i8" => Dtype::I64,
        "<i4" => Dtype::I32,
        "<i2" => Dtype::I16,
        "|i1" | "<i1" => Dtype::I8,
        "|u1" | "<u1" => Dtype::U8,
        "|b1" => Dtype::Bool,
        _ => return None,
    })
}

/// The three fields of `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
struct Header<'a> {
    descr: &'a str,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl<'a> Header<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, after) = quoted(rest)?;
            let value = after.trim_start().strip_prefix(':')?.trim_start();
            let after = match key {
                "descr" => {
                    // A structured type is a list here, and has no quoted start.
                    let (text, after) = quoted(value).unwrap_or((value, ""));
                    descr = Some(text);
                    after
                }
                "fortran_order" => {
                    let (flag, after) = value.split_once(',').unwrap_or((value, ""));
                    fortran_order = Some(match flag.trim() {
                        "True" => true,
                        "False" => false,
                        _ => return None,
                    });
                    after
                }
                "shape" => {
                    let (sizes, after) = value.strip_prefix('(')?.split_once(')')?;
                    let sizes = sizes.split(',').map(str::trim).filter(|size| !size.is_empty());
                    let sizes: Vec<usize> =
                        sizes.take(MAX_RANK + 1).map(|s| s.parse().ok()).collect::<Option<_>>()?;
                    shape = Some(sizes);
                    after
                }
                _ => return None,
            };
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        Some(Self {
            descr: descr?,
            fortran_order: fortran_order.unwrap_or(false),
            shape: shape.unwrap_or_default(),
        })
    }
}

/// The text in the quotes that `text` starts with, and what follows them.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    text[1..].split_once(quote)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn headers_parse() {
        let h = Header::parse("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }  \n");
        let h = h.unwrap();
        assert_eq!((h.descr, h.fortran_order, &h.shape[..]), ("<f4", true, &[2, 3][..]));
        let h = Header::parse("{'descr':'|u1','fortran_order':False,'shape':()}").unwrap();
        assert!(h.shape.is_empty());
        let h = Header::parse("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }");
        assert!(element(h.unwrap().descr).is_none());
        for bad in ["", "{", "{'shape': (-1,), 'descr': '<f4'}", "{'descr'}", "{'é': 1}"] {
            assert!(Header::parse(bad).is_none(), "{bad}");
        }
    }
}
