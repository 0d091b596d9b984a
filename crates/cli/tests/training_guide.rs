//! The commands of `docs/training.md`, run beside the files that it shows.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use std::fs;
use std::path::Path;
use std::process::Command;

/// What stands between a line of three marks with `kind` and the next three marks, for each of them.
fn blocks<'a>(guide: &'a str, kind: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for block in guide.split(&format!("```{kind}\n")).skip(1) {
        found.push(block.split("```").next().unwrap());
    }
    found
}

/// An archive of members with their bytes, by the format of POSIX.1-1988.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, bytes) in members {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(header);
        archive.extend(*bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

#[test]
fn every_layout_of_data_is_read_as_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guide = fs::read_to_string(root.join("docs/training.md")).unwrap();
    let picture = fs::read(root.join("testdata/preprocess/modes/rgb.png")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for class in ["cat", "dog"] {
        fs::create_dir_all(at("pets").join(class)).unwrap();
        fs::write(at("pets").join(class).join("1.png"), &picture).unwrap();
    }
    fs::write(at("pets.toml"), blocks(&guide, "toml")[0]).unwrap();
    let texts = blocks(&guide, "text");
    // Two rows pass the filter where the guide shows one, so that they fill a batch.
    let table = texts[0].to_owned() + "pets/dog/1.png,a dog again,dog,train\n";
    fs::write(at("pets.csv"), table).unwrap();
    fs::write(at("pets.jsonl"), texts[1]).unwrap();
    fs::create_dir(at("shards")).unwrap();
    for (shard, class) in [("pets-00", &b"0"[..]), ("pets-01", b"1")] {
        let members = [("1.png", &picture[..]), ("1.cls", class), ("1.txt", b"a pet")];
        fs::write(at("shards").join(format!("{shard}.tar")), tar(&members)).unwrap();
    }
    let commands: Vec<&str> = blocks(&guide, "console")
        .into_iter()
        .flat_map(str::lines)
        .filter_map(|line| line.strip_prefix("$ ocelli "))
        .filter(|line| line.contains("pets.toml"))
        .collect();
    assert_eq!(commands.len(), 4);
    for command in commands {
        // Once for the plan, and once in earnest.
        for command in [command, command.strip_suffix(" --dry-run").unwrap()] {
            let script = format!("{} {command}", env!("CARGO_BIN_EXE_ocelli"));
            let _ = fs::remove_dir_all(at("runs"));
            let done =
                Command::new("sh").arg("-c").arg(script).current_dir(&folder).output().unwrap();
            let (printed, said) =
                (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            assert!(done.status.success(), "{command}: {said}");
            if command.ends_with("--dry-run") {
                assert!(printed.contains("samples 2, steps 1 of 2"), "{command}: {printed}");
            } else {
                assert!(printed.contains("1 steps"), "{command}: {printed}");
            }
        }
    }
}
