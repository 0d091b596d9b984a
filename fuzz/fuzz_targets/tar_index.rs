//! Any bytes as a tar shard: no panic, and every member lies inside the archive.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use ocelli_data::dataset::Members;

fuzz_target!(|bytes: &[u8]| {
    let Ok(members) = Members::new(Cursor::new(bytes)) else { return };
    for member in members.flatten() {
        let end = member.offset.checked_add(member.size);
        assert!(end.is_some_and(|end| end <= bytes.len() as u64), "{member:?}");
    }
});
