//! `ocelli bench --task pipeline`: what it counts, and what it refuses.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const VIT: &str = "testdata/golden/vit/hf_classifier";
const CHINA: &str = "testdata/preprocess/images/china_320x213.jpg";
const ROCKET: &str = "testdata/preprocess/images/rocket_wide_400x75.jpg";

/// Exit code, standard output, standard error.
fn bench(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env("OCELLI_THREADS", "2")
        .args([&["bench", "--task", "pipeline"], arguments].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The figures of `ocelli bench --task pipeline --json`.
fn figures(arguments: &[&str]) -> impl Fn(&str) -> f64 {
    let (code, out, err) = bench(&[&["-m", VIT, "--json"], arguments].concat(), "");
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
    let line: Value = serde_json::from_str(&out).unwrap();
    move |name| line[name].as_f64().unwrap_or_else(|| panic!("no {name}: {line}"))
}

fn assert_is(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} in place of {expected}");
}

fn bytes(path: &str) -> f64 {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).metadata().unwrap().len() as f64
}

#[test]
fn parts_and_the_whole_are_told_in_milliseconds_a_picture() {
    let usual = figures(&[]);
    assert_is(usual("batch"), 8.0);
    assert_is(usual("threads"), 2.0);
    assert_is(usual("megapixels"), 0.3072);
    assert!(usual("picture_bytes") > 50_000.0 && usual("peak_rss_mib") > 1.0);
    assert!((usual("images_per_s") * usual("pipeline_ms") / 1e3 - 1.0).abs() < 1e-6);
    assert!(usual("best_ms") > 0.0 && usual("best_ms") <= usual("median_ms"));
    assert!(usual("runs") >= 3.0 && usual("decode_ms") > 0.0);
    let small = figures(&["--picture", "64x48"]);
    assert_is(small("megapixels"), 0.003_072);
}

#[test]
fn large_jpegs_may_decode_in_part() {
    let part = figures(&["--picture", "1600x1200", "--batch", "1", "--fast-decode"]);
    assert_is(part("batch"), 1.0);
    // What is told is the picture, not the part.
    assert_is(part("megapixels"), 1.92);
}

#[test]
fn pictures_that_are_named_are_taken_in_turn() {
    let named = figures(&["--batch", "4", CHINA, ROCKET]);
    assert_is(named("megapixels"), f64::from(320 * 213 + 400 * 75) / 2e6);
    assert_is(named("picture_bytes"), bytes(CHINA).midpoint(bytes(ROCKET)).floor());
    assert_is(named("batch"), 4.0);
}

#[test]
fn each_line_is_answered_with_as_many_times() {
    let (code, out, err) = bench(&["-m", VIT, "--batch", "2", "--interactive"], "3\n1\n");
    assert_eq!((code, err.as_str()), (0, ""));
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("ready"));
    for count in [3, 1] {
        let times = lines.next().unwrap().split(' ').map(|ms| ms.parse::<f64>().unwrap());
        let times: Vec<f64> = times.collect();
        assert!(times.len() == count && times.iter().all(|ms| *ms > 0.0), "{times:?}");
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn what_cannot_be_timed_says_what_can() {
    for (arguments, code, said) in [
        (&["--shape", "llama-1.1b"][..], 2, "a LLaMA: time it with --task prefill or decode"),
        (
            &["-m", "testdata/golden/backbones/llama_gqa"],
            2,
            "a LLaMA: time it with --task prefill or decode",
        ),
        (&["--shape", "flamingo-3b"], 2, "another model that `ocelli embed` takes"),
        (&["-m", VIT, "--dtype", "q4_0"], 2, "time them with --task prefill or decode"),
        (&["-m", VIT, "--scaling"], 2, "leave it out or --task pipeline"),
        (&["-m", VIT, "no-such.jpg"], 3, "no-such.jpg: No such file or directory (os error 2)"),
        (&["--shape", "vit-s16", "--batch", "4000000"], 5, "lower --batch"),
    ] {
        let (found, out, err) = bench(arguments, "");
        assert_eq!((found, out.as_str()), (code, ""), "{arguments:?}: {err}");
        assert!(err.trim_end().ends_with(said), "{err}");
    }
    let (code, _, err) = bench(&["-m", VIT, "--picture", "9000x9000"], "");
    assert!(code == 2 && err.contains("40000000 pixels at most"), "{err}");
}
