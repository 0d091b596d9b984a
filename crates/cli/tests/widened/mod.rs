//! The small models of references with a row of their tables for every piece of a tokenizer, so that
//! texts go through prompt, tokenizer and tables.

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const FOX: &str = "examples/pictures/fox.svg";
pub(crate) const ROCKET: &str = "examples/pictures/rocket.svg";

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the program prints.
pub(crate) fn ocelli(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.current_dir(root()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder that is removed at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The model of a stored case whose tables, by their names or the ends of them, have `vocab` rows; with the files
/// of the tokenizer in a folder of the test data and a changed configuration.
pub(crate) fn widened(
    case: &str,
    tables: &[&str],
    vocab: usize,
    words: [&str; 2],
    change: impl FnOnce(&mut Value),
) -> Folder {
    static FOLDERS: AtomicUsize = AtomicUsize::new(0);
    let from = root().join("testdata/golden").join(case);
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let name = format!("ocelli-{}-{}-{number}", case.replace('/', "-"), std::process::id());
    let to = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&to).unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            let is_table =
                |table: &&str| name == *table || (table.starts_with('.') && name.ends_with(*table));
            if tables.iter().any(is_table) {
                // Rows as unlike each other as the first ones, the same in every run.
                for i in shape[0] * shape[1]..vocab * shape[1] {
                    let value = ((i as f32) * 12.9898).sin() * 0.5;
                    data.extend_from_slice(&value.to_le_bytes());
                }
                shape[0] = vocab;
            }
            (name, shape, data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    let [folder, file] = words;
    let words = root().join("testdata").join(folder);
    for file in [file, "merges.txt", "tokenizer_config.json"] {
        if words.join(file).is_file() {
            std::fs::copy(words.join(file), to.join(file)).unwrap();
        }
    }
    Folder(to)
}

/// The texts of lines of JSON.
pub(crate) fn texts(lines: &str) -> Vec<String> {
    let text = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["text"].as_str().unwrap().to_owned()
    };
    lines.lines().map(text).collect()
}
