//! Folders, tables, JSON lines and shards: what they give and what they refuse.
#![allow(clippy::unwrap_used, reason = "a failing line names itself in a test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ocelli_data::dataset::{Dataset, DatasetError, Kind, SourceConfig};
use serde_json::json;

/// An empty folder of this test.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sources").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> String {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn config(value: serde_json::Value) -> SourceConfig {
    serde_json::from_value(value).unwrap()
}

fn open(value: serde_json::Value) -> Result<Dataset, DatasetError> {
    Dataset::open(&[config(value)])
}

fn error(value: serde_json::Value) -> String {
    open(value).unwrap_err().to_string()
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn folders_are_classes() {
    let root = folder("folders");
    for file in ["dog/b.png", "dog/a.JPG", "cat/deep/c.svg", "cat/.hidden.png", "cat/notes.txt"] {
        write(&root.join(file), file);
    }
    let data = open(json!({ "path": root })).unwrap();
    assert_eq!(data.classes(), ["cat", "dog"]);
    let all: Vec<_> = (0..data.len()).map(|index| data.sample(index).unwrap()).collect();
    let seen: Vec<_> =
        all.iter().map(|s| (s.annotation.key.as_str(), s.annotation.label)).collect();
    assert_eq!(seen, [("cat/deep/c", Some(0)), ("dog/a", Some(1)), ("dog/b", Some(1))]);
    assert_eq!(all[1].picture, b"dog/a.JPG");
    assert_eq!(all[1].annotation.captions, [["dog"]]);

    // What is no file is left out, and a folder that is not there is told.
    #[cfg(unix)]
    {
        let _socket = std::os::unix::net::UnixListener::bind(root.join("cat/s.png")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", root.join("cat/zero.png")).unwrap();
        std::os::unix::fs::symlink("deep/c.svg", root.join("cat/link.svg")).unwrap();
        assert_eq!(open(json!({ "path": root })).unwrap().len(), all.len() + 1);
    }
    let missing = open(json!({ "path": root.join("nowhere") })).map(|data| data.len()).unwrap_err();
    assert!(matches!(missing, DatasetError::NotThere { .. }), "{missing}");

    // A validation set that lacks a class keeps the numbers of the training set.
    let dogs = folder("only_dogs");
    write(&dogs.join("dog/x.png"), "x");
    let dogs = config(json!({ "path": dogs }));
    let validation =
        Dataset::open_with_classes(std::slice::from_ref(&dogs), data.classes()).unwrap();
    assert_eq!(validation.annotation(0).unwrap().label, Some(1));
    let unknown = Dataset::open_with_classes(&[dogs], &["cat".to_owned()]).unwrap_err();
    assert!(unknown.to_string().contains("class \"dog\" is none of the 1 known"), "{unknown}");
}

#[test]
fn tables_are_read_with_quotes_and_line_breaks() {
    let root = folder("tables");
    let text = "\u{feff}title,filepath,kind\r\n\
        \"a \"\"big\"\" house, red\",a.png,1\r\n\
        \r\n\
        \"two\nlines\",sub/b.png,2\n\
        last,c.png,1";
    let path = write(&root.join("t.csv"), text);
    for name in ["a.png", "sub/b.png", "c.png"] {
        write(&root.join(name), name);
    }
    let data = open(json!({ "path": path })).unwrap();
    let captions: Vec<_> =
        (0..3).map(|index| data.annotation(index).unwrap().captions[0][0].clone()).collect();
    assert_eq!(captions, ["a \"big\" house, red", "two\nlines", "last"]);
    assert_eq!(data.picture(1).unwrap(), b"sub/b.png");
    assert!(data.place(2).ends_with("t.csv line 6"), "{}", data.place(2));

    let some = open(json!({ "path": path, "where": { "kind": 1 }, "label_key": "kind" })).unwrap();
    assert_eq!((some.len(), some.class_count()), (2, 2));
    assert_eq!(some.annotation(1).unwrap().label, Some(1));

    let tabs = write(&root.join("t.tsv"), "filepath\ttitle\na.png\ta, b\n");
    assert_eq!(open(json!({ "path": tabs })).unwrap().annotation(0).unwrap().captions, [["a, b"]]);
    let named = write(&root.join("n.csv"), "image;text\na.png;x\n");
    let named = json!({ "path": named, "separator": ";", "picture_key": "image",
        "caption_keys": ["text"] });
    assert_eq!(open(named).unwrap().annotation(0).unwrap().captions, [["x"]]);
}

#[test]
fn broken_tables_name_the_line() {
    let root = folder("broken_tables");
    for (text, message) in [
        ("filepath,title\na.png,x\nb.png,y,z\n", "line 3: 3 columns, expected 2"),
        ("filepath,text\na.png,x\n", "no column \"title\", only [\"filepath\", \"text\"]"),
        ("filepath\ttitle\na.png\tx\n", "set separator"),
        ("filepath,title\n", "no sample"),
        ("", "no column"),
    ] {
        let path = write(&root.join("t.csv"), text);
        let error = error(json!({ "path": path }));
        assert!(error.contains(message), "{text:?}: {error}");
    }
    let path = write(&root.join("t.csv"), b"filepath,title\na.png,\xFF\n");
    assert!(error(json!({ "path": path })).contains("line 2: column 2 is not UTF-8"));
    let mut endless = b"filepath,title\na.png,\"".to_vec();
    endless.resize(20 << 20, b'x');
    let path = write(&root.join("t.csv"), endless);
    assert!(error(json!({ "path": path })).contains("longer than 16777216 bytes"));
}

#[test]
fn json_lines_are_read_and_name_the_broken_line() {
    let root = folder("json_lines");
    let good = r#"{"image": "a.png", "caption": "house", "text": ["x", " ", "y"], "label": "b"}

{"image": "b.png", "label": "a"}"#;
    let path = write(&root.join("good.jsonl"), good);
    write(&root.join("pictures/b.png"), "picture");
    let data = open(json!({ "path": path, "root": root.join("pictures") })).unwrap();
    let first = data.annotation(0).unwrap();
    assert_eq!(first.captions, [vec!["house"], vec!["x", "y"]]);
    assert_eq!((first.label, first.meta["image"].as_str()), (Some(1), Some("a.png")));
    assert_eq!(data.picture(1).unwrap(), b"picture");
    assert!(matches!(data.picture(0), Err(DatasetError::Io { .. })));

    for (line, message) in [
        (r#"{"image": "a.png""#, "line 2: not a JSON object (EOF"),
        ("[1]", "line 2: not a JSON object ([1])"),
        (r#"{"caption": "x"}"#, "line 2: \"image\" is null, expected the path"),
        (r#"{"image": "a", "caption": 5}"#, "line 2: \"caption\" is 5, expected a string"),
        (r#"{"image": "a", "label": -1}"#, "line 2: \"label\" is -1, expected"),
        (r#"{"image": "a", "label": 1}"#, "the label 1 is a number where others are names"),
    ] {
        let text = format!("{{\"image\": \"a\", \"label\": \"b\"}}\n{line}\n");
        let path = write(&root.join("bad.jsonl"), text);
        let error = error(json!({ "path": path }));
        assert!(error.contains(message), "{line}: {error}");
    }
}

#[test]
fn shards_group_members_by_name() {
    let root = folder("shards");
    let first = tar(&[
        ("x/a.svg", b"A"),
        ("x/a.json", br#"{"en": ["one", "two"], "zh": "\u4e00", "heldout": false, "index": 3}"#),
        ("x/lonely.txt", b"no picture"),
        ("x/b.tar.webp", b"ignored ending"),
        ("x/c.png", b"C"),
        ("x/c.txt", b" a caption\n"),
        ("x/c.json", br#"{"heldout": true, "index": 5}"#),
    ]);
    write(&root.join("s-0.tar"), first);
    write(&root.join("s-1.tar"), tar(&[("a.cls", b"7\n"), ("a.jpg", b"second a")]));
    let path = root.join("s-{0..1}.tar");

    let data = open(json!({ "path": path, "caption_keys": ["en", "zh"] })).unwrap();
    let keys: Vec<_> = (0..data.len()).map(|index| data.annotation(index).unwrap().key).collect();
    assert_eq!(keys, ["x/a", "x/c", "a"]);
    assert_eq!(data.annotation(0).unwrap().captions, [vec!["one", "two"], vec!["一"]]);
    assert_eq!(data.annotation(1).unwrap().captions, [["a caption"]]);
    assert_eq!(data.annotation(2).unwrap().label, Some(7));
    assert_eq!(data.picture(2).unwrap(), b"second a");

    let held_out = json!({ "path": path, "where": { "heldout": true }, "label_key": "index" });
    let held_out = open(held_out).unwrap();
    assert_eq!((held_out.len(), held_out.annotation(0).unwrap().label), (1, Some(5)));
    let nothing = error(json!({ "path": path, "where": { "heldout": 0 } }));
    assert!(nothing.contains("2 without a picture, 3 filtered out"), "{nothing}");

    let both = format!("{}::{}", root.join("s-1.tar").display(), root.join("s-0.tar").display());
    assert_eq!(open(json!({ "path": both })).unwrap().annotation(0).unwrap().key, "a");
    write(&root.join("bad.tar"), tar(&[("a.jpg", b"x"), ("a.cls", b"x")]));
    assert!(error(json!({ "path": root.join("bad.tar") })).contains("a.cls: \"cls\" is x"));
    write(&root.join("cut.tar"), &tar(&[("a.jpg", &[1; 900])])[..1000]);
    assert!(error(json!({ "path": root.join("cut.tar") })).contains("a.jpg"));
    assert!(error(json!({ "path": root.join("none.tar") })).contains("cannot read"));
}

#[test]
fn settings_are_checked() {
    let unknown: Result<SourceConfig, _> =
        serde_json::from_value(json!({ "path": "x", "wait": 1 }));
    assert!(unknown.unwrap_err().to_string().contains("unknown field `wait`"));
    let root = folder("settings");
    let (zip, csv) = (root.join("pictures.zip"), root.join("a.csv"));
    write(&zip, "");
    write(&csv, "");
    assert!(error(json!({ "path": zip })).contains("set kind"));
    assert!(error(json!({ "path": "a.tar", "weight": 0.0 })).contains("weight is 0"));
    assert_eq!(config(json!({ "path": "a", "kind": "json_lines" })).kind, Some(Kind::JsonLines));
    assert!(error(json!({ "path": csv, "separator": "\"" })).contains("separator"));
}
