//! Boxes of a MiniGPT-v2 and a Qwen-VL that always give the same answer: as pixels in JSON, and drawn.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_data::image::{Limits, RgbImage, open};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const ANSWER: &str = "<p>a cup</p> {<10><20><60><90>}<delim>{<0><0><100><100>} and {<50><50><10><60>} \
                      {<7><7><300><9>} {<1><2><3>} <p>a spoon</p> {<80><40><95";
const DOG: &str = "<ref>the dog</ref><box>(100,200),(500,600)</box>";
/// Of 301 x 200 pixels; the towers see it squeezed to a square.
const CUP: &str = "testdata/preprocess/images/coffee_301x200.jpg";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn ocelli(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelli"));
    command.current_dir(root()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ocelli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A tiny model of the golden files and what its tensors are called.
struct Tiny {
    case: &'static str,
    words: &'static str,
    /// Vocabulary and width.
    sizes: [usize; 2],
    /// What attention and perceptron end with.
    last: [&'static str; 2],
    answer: &'static str,
}

const MINIGPT: Tiny = Tiny {
    case: "minigpt4/v2_conversation",
    words: "embed_tokens.weight",
    sizes: [48, 32],
    last: ["o_proj.weight", "down_proj.weight"],
    answer: ANSWER,
};
const QWEN: Tiny = Tiny {
    case: "qwen_vl/long_context",
    words: "wte.weight",
    sizes: [134, 128],
    last: ["attn.c_proj.weight", "mlp.c_proj.weight"],
    answer: DOG,
};

/// The tiny model with a language model whose blocks add nothing: behind every token comes token 3,
/// which is the answer, and behind that the end.
fn model(folder: &Folder, tiny: &Tiny) -> String {
    let golden = root().join("testdata/golden").join(tiny.case);
    let dir = folder.0.join("model");
    fs::create_dir_all(&dir).unwrap();
    fs::copy(golden.join("config.json"), dir.join("config.json")).unwrap();
    let mut bytes = fs::read(golden.join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
    let [vocab, width] = tiny.sizes;
    for (name, tensor) in &header {
        let at = |i: usize| start + tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let ones: Vec<usize> = if name.ends_with(tiny.words) {
            (0..vocab).map(|id| id * width + usize::from(id == 3)).collect()
        } else if name.ends_with("lm_head.weight") {
            vec![3 * width, 2 * width + 1]
        } else if tiny.last.iter().any(|last| name.ends_with(last)) {
            Vec::new()
        } else {
            continue;
        };
        let (from, to) = (at(0), at(1));
        let values = bytes[from..to].as_chunks_mut::<4>().0;
        values.fill([0; 4]);
        ones.into_iter().for_each(|i| values[i] = 1_f32.to_le_bytes());
    }
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
    let token = |id: u32, content: &str, special: bool| {
        json!({ "id": id, "content": content, "special": special, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false })
    };
    let tokens = [token(1, "<s>", true), token(2, "</s>", true), token(3, tiny.answer, false)];
    let vocab = json!({ "<unk>": 0, "<s>": 1, "</s>": 2 });
    let model = json!({ "type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": [] });
    let tokenizer = json!({ "added_tokens": tokens, "model": model });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let names = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
    fs::write(dir.join("tokenizer_config.json"), names.to_string()).unwrap();
    dir.display().to_string()
}

fn expected() -> Value {
    json!([
        { "label": "a cup", "pixels": [30.1, 40.0, 180.6, 180.0] },
        { "label": "a cup", "pixels": [0.0, 0.0, 301.0, 200.0] },
    ])
}

fn check_errors(text: &str) {
    for said in [
        "{<50><50><10><60>}` ends before",
        "{<7><7><300><9>}` lies outside",
        "{<1><2><3>}` is no box",
        "{<80><40><95`; allow more tokens",
    ] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
}

/// The frame of the cup is there, and what is inside of it and of the whole picture is as it was.
fn check_cup(file: &str) {
    check_drawn(
        file,
        &[(30, 100), (180, 100), (100, 179), (0, 100), (300, 199)],
        &[(29, 100), (31, 100), (179, 100), (181, 100), (100, 178), (100, 180), (299, 198)],
    );
}

/// Places of a frame have its colour, which the picture has not, and others are as they were.
fn check_drawn(file: &str, frame: &[(usize, usize)], others: &[(usize, usize)]) {
    let [drawn, before]: [RgbImage; 2] = [file.to_owned(), root().join(CUP).display().to_string()]
        .map(|path| open(Path::new(&path), &Limits::default()).unwrap().to_rgb());
    let at = |picture: &RgbImage, x: usize, y: usize| -> [u8; 3] {
        picture.bytes()[3 * (y * 301 + x)..][..3].try_into().unwrap()
    };
    let colour = at(&drawn, frame[0].0, frame[0].1);
    for &(x, y) in frame {
        assert_eq!(at(&drawn, x, y), colour, "{x}, {y}");
        assert_ne!(at(&before, x, y), colour, "{x}, {y}");
    }
    for &(x, y) in others {
        assert_eq!(at(&drawn, x, y), at(&before, x, y), "{x}, {y}");
    }
}

#[test]
fn answers_carry_boxes_in_pixels_of_the_file() {
    let folder = Folder::new("boxes-json");
    let model = model(&folder, &MINIGPT);
    let png = folder.file("out.png");
    let commands: [&[&str]; 3] = [
        &["vqa", "-m", &model, "-q", "[refer] the cup", "--jsonl", "--draw", &png, CUP],
        &["caption", "-m", &model, "-i", "[grounding] describe", "--jsonl", "--draw", &png, CUP],
        &[
            "generate",
            "-m",
            &model,
            "-i",
            "[detection] cup",
            "--json",
            "--draw",
            &png,
            "--image",
            CUP,
        ],
    ];
    for command in commands {
        let output = ocelli(command, "");
        assert!(output.status.success(), "{output:?}");
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line["text"], ANSWER);
        assert_eq!(line["boxes"], expected(), "{command:?}");
        assert_eq!(line["box_errors"].as_array().unwrap().len(), 4);
        let said = String::from_utf8(output.stderr).unwrap();
        check_errors(&said);
        assert!(said.contains("2 boxes on"), "{said}");
        check_cup(&png);
        fs::remove_file(&png).unwrap();
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "only the model is left");
}

#[test]
fn a_chat_draws_the_boxes_of_its_last_answer() {
    let folder = Folder::new("boxes-chat");
    let model = model(&folder, &MINIGPT);
    let (png, nowhere) = (folder.file("out.png"), folder.file("none/out.png"));
    let chat = ["run", "-m", &model, "--temperature", "0", "--draw"];
    let output =
        ocelli(&[&chat[..], &[&png, "-i", "[refer] the cup", "--image", CUP]].concat(), "");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), ANSWER);
    check_errors(&String::from_utf8(output.stderr).unwrap());
    check_cup(&png);
    let output = ocelli(&[&chat[..], &[&nowhere, "-i", "[refer] it", "--image", CUP]].concat(), "");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("choose another place"));
    // Without a picture there is nothing to draw on.
    let output = ocelli(&[&chat[..], &[&png]].concat(), "Hello\n");
    assert!(output.status.success(), "{output:?}");
}

/// Thousandths of the sides, whatever the tower saw.
#[test]
fn boxes_of_qwen_vl_are_read_and_drawn() {
    let folder = Folder::new("boxes-qwen");
    let model = model(&folder, &QWEN);
    let png = folder.file("out.png");
    let commands: [&[&str]; 2] = [
        &["vqa", "-m", &model, "-q", "Where is the dog?", "--jsonl", "--draw", &png, CUP],
        &["generate", "-m", &model, "-i", "dog", "--json", "--draw", &png, "--image", CUP],
    ];
    for command in commands {
        let output = ocelli(command, "");
        assert!(output.status.success(), "{output:?}");
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line["text"], DOG);
        let dog = json!([{ "label": "the dog", "pixels": [30.1, 40.0, 150.5, 120.0] }]);
        assert_eq!(line["boxes"], dog, "{command:?}");
        assert!(line.get("box_errors").is_none(), "{line}");
        check_drawn(
            &png,
            &[(30, 100), (150, 100), (100, 40), (100, 119)],
            &[(29, 100), (31, 100), (149, 100), (151, 100), (100, 41), (100, 118), (100, 120)],
        );
        fs::remove_file(&png).unwrap();
    }
}

#[test]
fn a_box_is_asked_about_in_pixels() {
    let folder = Folder::new("boxes-asked");
    let model = model(&folder, &QWEN);
    let ask = |question: &str, more: &[&str]| {
        let command = ["vqa", "-m", &model, "-q", question, "--jsonl", CUP];
        let output = ocelli(&[&command[..], more].concat(), "");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(ask("What is in {box}?", &["--box", "30,40,150,120"]).0, Some(0));
    for (question, more, said) in [
        ("What is it?", &["--box", "30,40,150,120"][..], "write {box} in the question"),
        ("What is in {box}?", &[], "say with --box which one"),
        ("What is in {box}?", &["--box", "30,40,302,120"], "but the picture has 301 x 200 pixels"),
        ("What is in {box}?", &["--box", "30,40,20,120"], "expected four numbers of pixels"),
        ("What is in {box}?", &["--box", "NaN,1,2,3"], "expected four numbers of pixels"),
        ("What is in {box}?", &["--box", "1,1,2,2", CUP], "name one file"),
    ] {
        let (code, error) = ask(question, more);
        assert!(code == Some(2) && error.contains(said), "{code:?} {error}");
    }
    let llava =
        ["vqa", "-m", "testdata/golden/llava/hf_v15", "-q", "{box}?", "--box", "1,1,2,2", CUP];
    let error = String::from_utf8(ocelli(&llava, "").stderr).unwrap();
    assert!(error.contains("--box needs a MiniGPT-v2 or a Qwen-VL"), "{error}");
}

#[test]
fn drawing_needs_one_picture_and_a_model_with_boxes() {
    let llava = "testdata/golden/llava/hf_v15";
    for (command, said) in [
        (&["vqa", "-m", llava, "-q", "?", "--draw", "x.png", CUP][..], "--draw needs a MiniGPT-v2"),
        (&["vqa", "-m", llava, "-q", "?", "--draw", "x.png", CUP, CUP], "name one file"),
        (&["generate", "-m", llava, "-i", "a", "--draw", "x.png"], "give one -i and --image"),
    ] {
        let output = ocelli(command, "");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(said), "{error}");
    }
    let output = ocelli(&["vqa", "-m", llava, "-q", "?", "-n", "2", "--jsonl", CUP], "");
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(line.get("boxes").is_none(), "{line}");
}
