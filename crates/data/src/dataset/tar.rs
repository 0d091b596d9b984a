//! The members of a tar archive by one pass over its headers: ustar, GNU and pax.
//!
//! Nothing is unpacked and memory does not grow with the archive: the pass reads 512 bytes a member
//! and skips the rest. Links, folders and devices are passed over.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::error::TarError;

const BLOCK: u64 = 512;
/// Longest name or block of attributes, in bytes.
const MAX_ATTRIBUTES: u64 = 1 << 16;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path inside the archive.
    pub name: String,
    /// Where its bytes begin, from the start of the archive.
    pub offset: u64,
    /// In bytes; `offset + size` is inside the archive.
    pub size: u64,
}

/// Iterates over the files of an archive; ends at the first error.
#[derive(Debug)]
pub struct Members<R> {
    archive: BufReader<R>,
    /// Length of the archive.
    length: u64,
    /// Where the reader stands.
    at: u64,
    /// Where the next header begins.
    header: u64,
    is_done: bool,
}

/// What an extended header says about the file that follows it.
#[derive(Default)]
struct Attributes {
    name: Option<String>,
    size: Option<u64>,
}

impl<R: Read + Seek> Members<R> {
    /// The members of `archive`, which is read from its start.
    ///
    /// # Errors
    /// When the length of the archive cannot be found.
    pub fn new(mut archive: R) -> Result<Self, TarError> {
        let io = |source| TarError::Io { offset: 0, source };
        let length = archive.seek(SeekFrom::End(0)).map_err(io)?;
        archive.seek(SeekFrom::Start(0)).map_err(io)?;
        let archive = BufReader::new(archive);
        Ok(Self { archive, length, at: 0, header: 0, is_done: false })
    }

    /// The bytes of a member. Cheapest right after it was returned, before the next.
    ///
    /// # Errors
    /// When reading fails. The caller checks the size first.
    pub fn read(&mut self, member: &Member) -> Result<Vec<u8>, TarError> {
        let mut bytes = vec![0; usize::try_from(member.size).unwrap_or(usize::MAX)];
        self.read_at(member.offset, &mut bytes)?;
        Ok(bytes)
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), TarError> {
        let io = |source| TarError::Io { offset, source };
        // Both lie below the length of a file, which fits i64.
        self.archive.seek_relative(offset as i64 - self.at as i64).map_err(io)?;
        self.at = offset;
        self.archive.read_exact(bytes).map_err(io)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Member>, TarError> {
        let mut attributes = Attributes::default();
        loop {
            let offset = self.header;
            if offset >= self.length {
                return Ok(None);
            }
            if self.length - offset < BLOCK {
                return Err(TarError::CutHeader { offset });
            }
            let mut block = [0; BLOCK as usize];
            self.read_at(offset, &mut block)?;
            if block.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            check_sum(&block, offset)?;
            let kind = block[156];
            let declared =
                number(&block[124..136]).ok_or(TarError::Number { offset, field: "size" })?;
            let size = match kind {
                // Links, devices, folders and pipes have no bytes, whatever the field says.
                b'1'..=b'6' => 0,
                b'0' | 0 | b'7' => attributes.size.unwrap_or(declared),
                _ => declared,
            };
            let start = offset + BLOCK;
            let left = self.length - start;
            if size > left {
                let name = attributes.name.unwrap_or_else(|| short_name(&block));
                return Err(TarError::CutMember { name, offset: start, size, left });
            }
            self.header = start + size.next_multiple_of(BLOCK);
            match kind {
                b'0' | 0 | b'7' => {
                    let name = attributes.name.unwrap_or_else(|| short_name(&block));
                    return Ok(Some(Member { name, offset: start, size }));
                }
                b'L' => {
                    let bytes = self.attributes(start, size)?;
                    attributes.name = Some(text(&bytes));
                }
                b'x' => {
                    let bytes = self.attributes(start, size)?;
                    read_pax(&bytes, &mut attributes)
                        .ok_or(TarError::MalformedAttributes { offset: start })?;
                }
                b'S' => return Err(TarError::Sparse { name: short_name(&block), offset }),
                // A long link target and attributes for all files say nothing that is needed here.
                b'K' | b'g' => {}
                _ => attributes = Attributes::default(),
            }
        }
    }

    fn attributes(&mut self, offset: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_ATTRIBUTES {
            return Err(TarError::Attributes { offset, size, limit: MAX_ATTRIBUTES });
        }
        self.read(&Member { name: String::new(), offset, size })
    }
}

impl<R: Read + Seek> Iterator for Members<R> {
    type Item = Result<Member, TarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let next = self.advance().transpose();
        self.is_done = !matches!(next, Some(Ok(_)));
        next
    }
}

fn check_sum(block: &[u8; BLOCK as usize], offset: u64) -> Result<(), TarError> {
    let found = number(&block[148..156]).ok_or(TarError::Number { offset, field: "checksum" })?;
    // The sum counts its own field as eight spaces.
    let expected = block.iter().enumerate().map(|(at, &byte)| {
        if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(byte) }
    });
    let expected = expected.sum();
    if found != expected {
        return Err(TarError::Checksum { offset, found, expected });
    }
    Ok(())
}

/// Octal digits between spaces and zeros, or, with the top bit set, a big-endian number.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        // The sign bit: sizes are not negative.
        if field[0] & 0x40 != 0 {
            return None;
        }
        let first = u64::from(field[0] & 0x3F);
        return field[1..]
            .iter()
            .try_fold(first, |value, &byte| value.checked_mul(256)?.checked_add(u64::from(byte)));
    }
    let digits = field.iter().position(|&byte| byte == 0).map_or(field, |end| &field[..end]);
    digits.trim_ascii().iter().try_fold(0_u64, |value, &byte| {
        (b'0'..=b'7').contains(&byte).then_some(())?;
        value.checked_mul(8)?.checked_add(u64::from(byte - b'0'))
    })
}

/// The name in the header itself.
fn short_name(block: &[u8; BLOCK as usize]) -> String {
    let name = text(&block[..100]);
    // GNU's magic has a space here and other fields in place of the prefix.
    if &block[257..263] == b"ustar\0" && block[345] != 0 {
        return format!("{}/{name}", text(&block[345..500]));
    }
    name
}

/// Text up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Records `"LENGTH key=value\n"`, the length counting itself.
fn read_pax(mut bytes: &[u8], attributes: &mut Attributes) -> Option<()> {
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        if length > bytes.len() {
            return None;
        }
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        let value = &record[equals + 1..];
        match &record[..equals] {
            b"path" => attributes.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"size" => attributes.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            _ => {}
        }
        bytes = &bytes[length..];
    }
    Some(())
}
