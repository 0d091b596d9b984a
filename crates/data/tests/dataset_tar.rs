//! The tar index: what Python's tarfile wrote, and what no one should have written.
#![allow(clippy::unwrap_used, reason = "a failing line names itself in a test")]

use std::{io::Cursor, path::Path};

use ocelli_data::dataset::{Member, Members, TarError};
use proptest::prelude::*;

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/dataset");
    std::fs::read(folder.join(name)).unwrap()
}

fn members(bytes: &[u8]) -> Result<Vec<Member>, TarError> {
    Members::new(Cursor::new(bytes))?.collect()
}

/// A header with a sound checksum.
fn header(name: &str, kind: u8, size: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u64 = block[..512].iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn every_format_of_tarfile_is_read() {
    let long = format!("folder/{}/{}.txt", "n".repeat(90), "m".repeat(60));
    for (file, third) in [("ustar.tar", "b.txt"), ("gnu.tar", "画.txt"), ("pax.tar", "画.txt")] {
        let bytes = fixture(file);
        let found = members(&bytes).unwrap();
        let names: Vec<&str> = found.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["a.txt", &long, third, "c.txt"], "{file}");
        let content = |n: usize| &bytes[found[n].offset as usize..][..found[n].size as usize];
        assert_eq!(
            (content(0), content(1), content(2)),
            (&b"first"[..], &b"long name"[..], &b""[..])
        );
        assert_eq!(content(3), (0..768).map(|n| n as u8).collect::<Vec<_>>());
        let mut again = Members::new(Cursor::new(&bytes)).unwrap();
        let last = again.by_ref().map(Result::unwrap).last().unwrap();
        assert_eq!(again.read(&last).unwrap(), content(3));
    }
}

#[test]
fn hostile_archives_are_clear_errors() {
    let huge = [0x80, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];
    let negative = [0xFF; 12];
    let mut overflow = [0xBF; 12];
    overflow[0] = 0xBF;
    let pax = |record: &str| {
        let size = format!("{:011o}", record.len());
        let mut bytes = header("pax", b'x', size.as_bytes());
        bytes.extend_from_slice(record.as_bytes());
        bytes.resize(1024, 0);
        bytes.extend(header("a", b'0', b"00000000000"));
        bytes
    };
    let cases = [
        ("past the end", header("a.png", b'0', b"00000002000"), "the archive ends 0 bytes later"),
        ("base-256 past the end", header("a.png", b'0', &huge), "the archive ends"),
        ("negative", header("a.png", b'0', &negative), "the size in the header at byte 0"),
        ("beyond 64 bits", header("a.png", b'0', &overflow), "the size in the header at byte 0"),
        ("no octal", header("a.png", b'0', b"9"), "the size in the header at byte 0"),
        ("sparse", header("a.png", b'S', b"0"), "without --sparse"),
        ("long name past the end", header("l", b'L', b"00000000777"), "the archive ends"),
        ("pax length", pax("99 path=x\n"), "attributes at byte 512"),
        ("pax without value", pax("9 pathxx\n"), "attributes at byte 512"),
        ("pax size", pax("27 size=9223372036854775807\n"), "attributes at byte 512"),
        ("pax huge size", pax("28 size=9223372036854775807\n"), "the archive ends"),
        ("pax negative size", pax("11 size=-1\n"), "attributes at byte 512"),
        ("cut header", header("a", b'0', b"0")[..300].to_vec(), "ends inside the header"),
        ("gzip", [&[0x1F, 0x8B, 8][..], &[1; 600]].concat(), "at byte 0"),
        ("text", vec![b'x'; 2048], "at byte 0"),
    ];
    for (name, bytes, message) in cases {
        let error = members(&bytes).unwrap_err().to_string();
        assert!(error.contains(message), "{name}: {error}");
    }
    let mut attributes = header("l", b'L', b"00000400000");
    attributes.resize(512 + (1 << 17), 0);
    assert!(matches!(members(&attributes), Err(TarError::Attributes { .. })));
}

#[test]
fn an_archive_ends_without_its_last_zeros() {
    assert_eq!(members(&[]).unwrap(), []);
    assert_eq!(members(&[0; 1024]).unwrap(), []);
    let mut bytes = header("a", b'0', b"00000000003");
    bytes.extend_from_slice(b"abc");
    assert_eq!(members(&bytes).unwrap(), [Member { name: "a".into(), offset: 512, size: 3 }]);
}

proptest! {
    #[test]
    fn any_bytes_give_members_inside_the_archive_or_an_error(
        which in 0..3_usize,
        changes in prop::collection::vec((0..10_240_usize, any::<u8>(), any::<bool>()), 0..12),
        length in 0..10_240_usize,
    ) {
        let mut bytes = fixture(["ustar.tar", "gnu.tar", "pax.tar"][which]);
        for (at, value, is_sealed) in changes {
            bytes[at] = value;
            if is_sealed {
                // A sound checksum lets the change reach the rest of the parser.
                let start = at / 512 * 512;
                seal(&mut bytes[start..start + 512]);
            }
        }
        bytes.truncate(length.max(512));
        for member in Members::new(Cursor::new(&bytes)).unwrap().flatten() {
            let end = member.offset.checked_add(member.size).unwrap();
            prop_assert!(end <= bytes.len() as u64);
        }
    }
}
