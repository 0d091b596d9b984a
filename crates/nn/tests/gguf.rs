//! GGUF files: every type of tensor against what the reference reader unpacks, metadata, hostile bytes.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_nn::checkpoint::{Checkpoint, gguf};
use std::path::PathBuf;

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/gguf")).join(name)
}

/// The expected values come from the gguf package (`tools/gguf_blocks.py`).
#[test]
fn every_type_unpacks_to_the_values_of_its_reference() {
    let blocks = Checkpoint::open(&file("blocks.gguf")).unwrap();
    let values = Checkpoint::open(&file("blocks.safetensors")).unwrap();
    let names: Vec<&str> = values.names().collect();
    assert_eq!(blocks.names().collect::<Vec<_>>(), names);
    for name in names {
        let (_, shape) = values.info(name).unwrap();
        assert_eq!(blocks.info(name).unwrap().1, shape, "{name}");
        let (got, want) = (blocks.read_f32(name).unwrap(), values.read_f32(name).unwrap());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-2), "{name} {i}: {got} {want}");
        }
    }
}

#[test]
fn metadata_keep_their_types() {
    let metadata = gguf::metadata(&file("blocks.gguf")).unwrap();
    assert_eq!(metadata["general.architecture"], "llama");
    assert_eq!(metadata["test.number"], 0.5);
    assert_eq!(metadata["test.texts"][1], "bé");
    assert!(gguf::is_gguf(&file("blocks.gguf")) && !gguf::is_gguf(&file("blocks.safetensors")));
}

#[test]
fn damaged_files_are_refused() {
    let whole = std::fs::read(file("blocks.gguf")).unwrap();
    for len in 0..whole.len() {
        // The last bytes are padding behind the last tensor.
        let cut = Checkpoint::from_bytes(whole[..len].to_vec());
        assert!(cut.is_err() || whole.len() - len < 32, "{len}");
    }
    // Whatever a byte of the header becomes, there is an answer, and what is read is in bounds.
    for at in 4..whole.len().min(900) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(file) = Checkpoint::from_bytes(bytes) {
                for name in file.names() {
                    file.read_f32(name).unwrap();
                }
            }
        }
    }
    let message =
        Checkpoint::from_bytes(&b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0"[..]).unwrap_err().to_string();
    assert!(message.contains("version"), "{message}");
}
