//! Articles with pictures, by the small InternLM-XComposer and the built-in CLIP.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const MODEL: &str = "testdata/golden/xcomposer/tiny";
const PICTURES: &str = "examples/pictures";
const LLAVA: &str = "testdata/golden/llava/hf_v15";

/// Exit code, standard output, standard error.
fn ocelli(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn pictures_stand_behind_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (text, written) = (at("text.txt"), at("article.md"));
    let expected = [
        "a fox and a rocket",
        "the tea flies on the fox",
        "the rocket eats in the tea",
        "the pizza plays with the rocket",
    ];
    fs::write(&text, format!(" {}\n", expected.join("\n\n\n "))).unwrap();
    let compose =
        ["compose", "-m", MODEL, "--pictures", PICTURES, "--jsonl", "-o", &written, &text];
    let (code, out, err) = ocelli(&compose);
    assert_eq!(code, 0, "{err}");
    let article = lines(&out);
    let texts: Vec<&str> = article.iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(texts, expected);
    let mut blocks = Vec::new();
    let mut used: Vec<String> = Vec::new();
    for (i, line) in article.iter().enumerate() {
        assert_eq!(line["line"], i);
        blocks.push(line["text"].as_str().unwrap().to_owned());
        let Some(image) = line["image"].as_str() else { continue };
        let caption = line["caption"].as_str().unwrap();
        // The four that another command finds the likeliest, without those that are placed.
        let (_, matched, _) = ocelli(&["match", "--text", caption, "--jsonl", PICTURES]);
        let mut found: Vec<(f64, String)> = lines(&matched)
            .iter()
            .map(|m| {
                let cosine = m["texts"][0]["cosine"].as_f64().unwrap();
                (cosine, m["image"].as_str().unwrap().to_owned())
            })
            .filter(|(_, image)| !used.contains(image))
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        let expected: Vec<&String> = found.iter().take(4).map(|(_, image)| image).collect();
        let candidates = line["candidates"].as_array().unwrap();
        assert_eq!(candidates.iter().collect::<Vec<_>>(), expected);
        assert!(candidates.contains(&Value::from(image)));
        used.push(image.to_owned());
        blocks.push(image.to_owned());
    }
    assert!(used.len() > 1, "too few pictures to tell of: {out}{err}");
    // The file has the same blocks; its pictures are found from where it lies.
    let markdown = fs::read_to_string(&written).unwrap();
    let from_file: Vec<String> = markdown
        .trim_end()
        .split("\n\n")
        .map(|block| match block.strip_prefix("![").and_then(|b| b.rsplit_once("](")) {
            Some((_, path)) => {
                let path = folder.path().join(path.strip_suffix(')').unwrap());
                let name = path.canonicalize().unwrap();
                format!("{PICTURES}/{}", name.file_name().unwrap().to_str().unwrap())
            }
            None => block.to_owned(),
        })
        .collect();
    assert_eq!(from_file, blocks);
    // Without a file Markdown comes out, with the paths as they were given.
    let (_, out, _) = ocelli(&["compose", "-m", MODEL, "--pictures", PICTURES, &text]);
    assert!(used.iter().all(|image| out.contains(&format!("]({image})"))), "{out}");
    // No more than were asked for.
    let one = ["compose", "-m", MODEL, "--pictures", PICTURES, "--images", "1", "--jsonl", &text];
    let (_, out, _) = ocelli(&one);
    assert!(lines(&out).iter().filter(|line| line["image"].is_string()).count() == 1);
}

#[test]
fn what_cannot_be_composed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (text, blank, empty) = (at("text.txt"), at("blank.txt"), at("empty"));
    fs::write(&text, "the fox\n").unwrap();
    fs::write(&blank, " \n\n").unwrap();
    fs::create_dir(&empty).unwrap();
    let long = at("long.txt");
    fs::write(&long, "the fox\n".repeat(100)).unwrap();
    let broken = at("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(Path::new(&broken).join("a.png"), "no picture").unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["-m", MODEL, "--pictures", PICTURES], 2, "<FILE>"),
        (&["-m", MODEL, "--pictures", PICTURES, &text, "--title", "Tea"], 2, "cannot be used with"),
        (&["-m", MODEL, "--pictures", PICTURES, "--title", " "], 2, "the title is empty"),
        (&["-m", MODEL, "--pictures", PICTURES, &blank], 3, "no text; give an article"),
        (&["-m", MODEL, "--pictures", PICTURES, &at("none.txt")], 3, "cannot read the article"),
        (&["-m", MODEL, "--pictures", PICTURES, &long], 3, "but the model reads at most 128"),
        (&["-m", MODEL, "--pictures", &empty, &text], 3, "no pictures to place"),
        (&["-m", MODEL, "--pictures", &broken, &text], 3, "a.png"),
        (&["-m", MODEL, "--pictures", &at("none"), &text], 3, "no such file or folder"),
        (&["-m", MODEL, "--pictures", "-", "-"], 2, "are both on standard input"),
        (&["-m", MODEL, "--pictures", PICTURES, &text, "-o", &at("none/a.md")], 1, "no folder"),
        (&["-m", MODEL, "--pictures", PICTURES, &text, "-o", &empty], 1, "no regular file"),
        // Before the model is opened, which is of the wrong kind.
        (
            &["-m", LLAVA, "--by", &at("none"), "--pictures", PICTURES, &text],
            4,
            "check the spelling",
        ),
        (&["-m", MODEL, "--pictures", PICTURES, "--images", "0", &text], 2, "--images"),
        (
            &["-m", LLAVA, "--pictures", PICTURES, &text],
            2,
            "composing needs an InternLM-XComposer; this model is a LLaVA",
        ),
        (
            &[
                "-m",
                MODEL,
                "--by",
                "testdata/golden/vit/hf_classifier",
                "--pictures",
                PICTURES,
                &text,
            ],
            2,
            "finding pictures by captions needs a CLIP or a LiT; this model is a ViT",
        ),
    ];
    for (arguments, code, said) in cases {
        let (got, out, err) = ocelli(&[&["compose"], *arguments].concat());
        assert_eq!((got, out.as_str()), (*code, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {said:?} is not in {err}");
    }
}

#[test]
fn an_article_of_the_model_is_shown_before_its_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("article.md").display().to_string();
    let asked = ["compose", "-m", MODEL, "--title", "the fox", "--pictures", PICTURES];
    let (code, out, err) = ocelli(&asked);
    assert_eq!(code, 0, "{err}");
    // No picture is placed in it, so it comes out as it was shown.
    assert!(!out.trim().is_empty() && err.starts_with(&out), "{out}{err}");
    let (code, nothing, err) = ocelli(&[&asked[..], &["-o", &file]].concat());
    assert_eq!((code, nothing.as_str()), (0, ""));
    assert!(!err.contains(&out), "{err}");
    assert_eq!(fs::read_to_string(&file).unwrap(), out);
}

#[test]
fn an_unread_picture_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    fs::create_dir(&pictures).unwrap();
    fs::write(pictures.join("broken.png"), "no picture").unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(PICTURES);
    fs::copy(root.join("fox.svg"), pictures.join("fox.svg")).unwrap();
    let pictures = pictures.display().to_string();
    let (code, out, err) =
        ocelli(&["compose", "-m", MODEL, "--pictures", &pictures, "examples/article.txt"]);
    assert_eq!(code, 3, "{err}");
    assert!(out.contains("fox.svg"), "{out}");
    assert_eq!(err.matches("broken.png").count(), 1, "{err}");
}
