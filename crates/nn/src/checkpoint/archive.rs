//! Zip archives as a table of byte ranges: `torch.save` and `numpy.savez` write their members
//! uncompressed, so they are read in place. Checksums are not verified.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::entry::{MAX_INFLATED, Source};
use super::error::{Error, Result};

/// No deflate stream decodes to more than this many times its own size.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// The members of a zip archive, by name.
pub(super) fn members(path: &Path, file: &[u8]) -> Result<BTreeMap<String, Source>> {
    let damaged = |reason: String| Error::Malformed {
        path: path.to_path_buf(),
        format: "zip archive",
        reason,
    };
    // Nothing stands before these archives. Looked for, their table of members is taken for one that
    // begins with its second member where the first takes as many bytes as what follows the table.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let zip = ZipArchive::with_config(config, Cursor::new(file));
    let mut zip = zip.map_err(|e| damaged(e.to_string()))?;
    let mut members = BTreeMap::new();
    for index in 0..zip.len() {
        let member = zip.by_index_raw(index).map_err(|e| damaged(e.to_string()))?;
        let name = member.name().map_err(|e| damaged(e.to_string()))?.into_owned();
        let stored = member.compressed_size();
        let size = member.size();
        let end = member.data_start().and_then(|start| start.checked_add(stored));
        let (Some(start), Some(end)) = (member.data_start(), end) else {
            return Err(damaged(format!("member {name} has no place in the file")));
        };
        if end > file.len() as u64 {
            let len = file.len();
            return Err(damaged(format!("member {name} ends at byte {end} of {len}")));
        }
        let range = start as usize..end as usize;
        let source = match member.compression() {
            _ if member.encrypted() => {
                return Err(damaged(format!("member {name} is encrypted")));
            }
            CompressionMethod::Stored if size == stored => Source::Stored(range),
            CompressionMethod::DEFLATE if size > MAX_INFLATED => {
                return Err(Error::Limit {
                    path: path.to_path_buf(),
                    what: "the decoded size of an archive member, in bytes,",
                    found: size,
                    limit: MAX_INFLATED,
                });
            }
            CompressionMethod::DEFLATE if size <= stored.saturating_mul(MAX_DEFLATE_RATIO) => {
                Source::Deflated { range, size: size as usize }
            }
            method => {
                return Err(damaged(format!(
                    "member {name} ({method}) says that {stored} bytes decode to {size}"
                )));
            }
        };
        members.insert(name, source);
    }
    Ok(members)
}
