//! `ocelli train` killed with SIGKILL, again and again, and resumed by the same command: every loss
//! and every weight is that of a run that nobody touched.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const STEPS: u64 = 60;

const RECIPE: &str = r#"
[model]
family = "vit"
image_size = 32
vision = { patch_size = 8, width = 96, depth = 2, heads = 2 }
[data]
sources = [{ path = "DATA", root = "testdata/preprocess/images" }]
augment = { scale = [0.5, 1.0], flip = 0.5, rotate = 10.0, brightness = 0.2 }
cache = { side = 40, bytes = 1000000 }
[train]
stage = "supervised"
steps = 60
global_batch_size = 5
micro_batch_size = 2
mixup = 0.2
[optim]
name = "adamw"
lr = 1e-3
weight_decay = 0.1
max_grad_norm = 1.0
[schedule]
name = "cosine"
warmup_steps = 5
[freeze]
vision = "none"
[checkpoint]
every_steps = 3
keep_last = 2
keep_best = "val_top1:max"
[log]
every_steps = 1
[eval]
every_steps = 7
sets = [{ name = "val", sources = [{ path = "DATA", root = "testdata/preprocess/images" }] }]
"#;

/// Random numbers that are the same in every run of the test (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    /// With a recipe and the list of pictures that it learns from.
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("ocelli-killed-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let pictures = [
            ("astronaut_143x190.png", 0),
            ("camera_gray_180x161.png", 1),
            ("chelsea_197x131.png", 2),
            ("china_320x213.jpg", 0),
            ("coffee_301x200.jpg", 1),
            ("flower_96x64.png", 2),
            ("logo_rgba_132x130.png", 0),
        ];
        let line = |(name, label)| format!("{{\"image\": \"{name}\", \"label\": {label}}}\n");
        let data = path.join("pictures.jsonl");
        fs::write(&data, pictures.map(line).concat()).unwrap();
        let recipe = RECIPE.replace("DATA", data.to_str().unwrap());
        fs::write(path.join("recipe.toml"), recipe).unwrap();
        Self(path)
    }

    fn train(&self, name: &str) -> Child {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
        command.args(["train", "-q", "--name", name, "-c"]).arg(self.0.join("recipe.toml"));
        command.arg("--runs").arg(&self.0).current_dir(root).env("OCELLI_THREADS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command.spawn().unwrap()
    }

    /// Records of the log without what depends on the machine's mood, as they were written.
    fn records(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.0.join(name).join("log.jsonl")).unwrap();
        let parse = |line: &str| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            for key in ["seconds", "images_per_second"] {
                record.as_object_mut().unwrap().remove(key);
            }
            record.to_string()
        };
        text.lines().map(parse).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits until `is_time`, then kills. Whether the run was still under way.
fn kill_when(mut child: Child, mut is_time: impl FnMut() -> bool) -> bool {
    while child.try_wait().unwrap().is_none() {
        if is_time() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    assert!(child.wait().unwrap().success());
    false
}

#[test]
fn a_killed_run_ends_like_one_that_was_not() {
    let scratch = Scratch::new();
    assert!(scratch.train("straight").wait().unwrap().success());
    let run = scratch.0.join("killed");
    let (log, checkpoints) = (run.join("log.jsonl"), run.join("checkpoints"));
    let draft = checkpoints.join(".draft");
    let entries = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count) as u64;
    let lines = || fs::read(&log).map_or(0, |b| b.split(|b| *b == b'\n').count() - 1) as u64;
    let mut dice = Dice(2);
    let (mut kills, mut cut_checkpoints) = (0, 0);
    loop {
        // In turn: some steps further at any moment of one, and while a checkpoint is written, with
        // so many of its files begun.
        let done = lines();
        let (steps, moment, files) = (3 + dice.below(6), dice.below(4000), 1 + dice.below(5));
        let within_checkpoint = kills % 2 == 1;
        let was_killed = kill_when(scratch.train("killed"), || {
            let far_enough = lines() >= done + steps;
            if within_checkpoint {
                return far_enough && entries(&draft) >= files;
            }
            if far_enough {
                std::thread::sleep(Duration::from_micros(moment));
            }
            far_enough
        });
        if !was_killed {
            break;
        }
        kills += 1;
        cut_checkpoints += u64::from(draft.exists());
    }
    assert!(kills >= 5 && cut_checkpoints >= 2, "{kills} {cut_checkpoints}");
    assert!(!draft.exists());
    let records = scratch.records("killed");
    assert_eq!(records.iter().filter(|r| r.contains("\"loss\":")).count() as u64, STEPS);
    assert_eq!(records, scratch.records("straight"));
    let last = format!("checkpoints/step-{STEPS:08}");
    for file in ["export/model.safetensors", "checkpoints/best/model.safetensors"]
        .map(str::to_owned)
        .into_iter()
        .chain(["model", "optimizer"].map(|name| format!("{last}/{name}.safetensors")))
    {
        let read = |name: &str| fs::read(scratch.0.join(name).join(&file)).unwrap();
        assert!(read("killed") == read("straight"), "{file} differs");
    }
}
