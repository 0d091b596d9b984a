//! A Flamingo from pictures and words to words: the small model of the reference gets the vocabulary of
//! a tokenizer, so that texts go through prompt, tokenizer and tables.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod small_flamingo;
mod widened;

use ocelli_data::image::{Limits, encode_png, open};
use serde_json::{Value, json};
use small_flamingo::{behind, small_flamingo};
use std::path::Path;
use widened::{FOX, ROCKET, ocelli, root, texts};

#[test]
fn pictures_and_examples_are_put_into_the_prompts_of_the_publication() {
    let folder = small_flamingo(0);
    let model = folder.path();

    let both = ocelli(&["caption", "-m", model, "-n", "8", "--jsonl", FOX, ROCKET], "");
    let caption = |image| behind(model, "<image>Output:", &[image], &[]);
    assert_eq!(texts(&both), [caption(FOX), caption(ROCKET)]);

    let asked = ["vqa", "-m", model, "-q", "What is it?", "-n", "8", "--jsonl", FOX];
    let answer = texts(&ocelli(&asked, "")).remove(0);
    let question = "<image>Question:What is it? Short answer:";
    assert_eq!(answer, behind(model, question, &[FOX], &[]));

    // An example with a picture and one of text alone.
    let shots = std::path::Path::new(model).join("shots.json");
    let rocket = root().join(ROCKET).canonicalize().unwrap();
    let examples = json!([
        {"image": rocket, "question": "What is it?", "text": "a rocket"},
        {"question": "Is it day?", "text": "no"},
    ]);
    std::fs::write(&shots, examples.to_string()).unwrap();
    let shots = shots.to_str().unwrap();
    let few = texts(&ocelli(&[&asked[..], &["--shots", shots]].concat(), "")).remove(0);
    let spelled = "<image>Question:What is it? Short answer:a rocket<|endofchunk|>\
                   Question:Is it day? Short answer:no<|endofchunk|>";
    assert_eq!(few, behind(model, &format!("{spelled}{question}"), &[ROCKET, FOX], &[]));
    assert_ne!(few, answer);

    // The same examples before a prompt that says where its picture goes.
    let shown = "<image>What is it?a rocket<|endofchunk|>Is it day?no<|endofchunk|>";
    let prompt = ["generate", "-m", model, "-n", "8", "--image", FOX, "-i", "<image>A fox"];
    let few = ocelli(&[&prompt[..], &["--shots", shots]].concat(), "");
    assert_eq!(few.trim(), behind(model, &format!("{shown}<image>A fox"), &[ROCKET, FOX], &[]));

    // Prompts of one call, each with the picture somewhere else, are what they are alone.
    let two = ["Look: <image>a", "<image>", "so much for <image> and more"];
    let mut together = vec!["generate", "-m", model, "-n", "8", "--image", FOX, "--json"];
    two.iter().for_each(|prompt| together.extend(["-i", prompt]));
    let alone: Vec<String> = two.iter().map(|prompt| behind(model, prompt, &[FOX], &[])).collect();
    let together = texts(&ocelli(&together, ""));
    assert_eq!(together.iter().map(|text| text.trim()).collect::<Vec<_>>(), alone);

    let chat = ["run", "-m", model, "-n", "8", "--temperature", "0"];
    let lines = format!("/image {FOX}\nWhat is it?\n/image {ROCKET}\nAnd this?\n");
    let said = ocelli(&chat, &lines);
    let first = said.lines().next().unwrap();
    assert_eq!(first.trim(), behind(model, "<image>What is it?", &[FOX], &[]));
}

/// An example for each of some pictures.
fn examples(images: &[&str]) -> Value {
    let one = |image: &&str| {
        let path = root().join(image).canonicalize().unwrap();
        let answer = Path::new(image).file_stem().unwrap().to_str().unwrap();
        json!({"image": path, "question": "What is it?", "text": format!("a {answer}, I think")})
    };
    images.iter().map(one).collect()
}

const PICTURES: [&str; 7] = [
    "examples/pictures/guitar.svg",
    "examples/pictures/hot.svg",
    "examples/pictures/pizza.svg",
    ROCKET,
    "examples/pictures/tiger.svg",
    "examples/pictures/umbrella.svg",
    FOX,
];

/// Questions about pictures behind four examples, side by side and one by one; and a question about
/// three pictures behind the same examples.
#[test]
fn questions_behind_examples_are_answered_the_same_together_and_alone() {
    let folder = small_flamingo(0);
    let model = folder.path();
    let shots = Path::new(model).join("shots.json");
    std::fs::write(&shots, examples(&PICTURES[..4]).to_string()).unwrap();
    let shots = ["--shots", shots.to_str().unwrap()];
    let asked = ["vqa", "-m", model, "-q", "What is it?", "-n", "8", "--jsonl"];
    let asked = [&asked[..], &shots, &PICTURES[4..]].concat();
    let together = ocelli(&asked, "");
    assert_eq!(together, ocelli(&[&asked[..], &["--batch-size", "1"]].concat(), ""));
    let shown: Vec<String> = examples(&PICTURES[..4])
        .as_array()
        .unwrap()
        .iter()
        .map(|e| format!("<image>What is it?{}<|endofchunk|>", e["text"].as_str().unwrap()))
        .collect();
    let three = "<image>One.<image>Two.<image>Which is it?";
    let few = behind(model, three, &PICTURES[4..], &shots);
    let spelled = shown.concat() + three;
    assert_eq!(few, behind(model, &spelled, &PICTURES, &[]));
}

/// The vectors of pictures, as another command tells them.
fn vectors(images: &[&str], model: &[&str]) -> Vec<Vec<f64>> {
    let lines = ocelli(&[&["embed"][..], model, images].concat(), "");
    let vector = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    lines.lines().map(vector).collect()
}

#[test]
fn the_nearest_examples_are_shown_the_nearest_last() {
    let folder = small_flamingo(0);
    let model = folder.path();
    let [all, few] = ["all.json", "few.json"].map(|name| Path::new(model).join(name));
    let pool = &PICTURES[..5];
    std::fs::write(&all, examples(pool).to_string()).unwrap();
    let asked = ["vqa", "-m", model, "-q", "What is it?", "-n", "8", "--jsonl"];
    for by in [&[][..], &["--by", "testdata/golden/clip/hf_vit"]] {
        let own = by.last().map_or(vec![], |model| vec!["-m", *model]);
        let pool_vectors = vectors(pool, &own);
        let (mut said, mut orders) = (Vec::new(), Vec::new());
        for query in &PICTURES[5..] {
            let query_vector = vectors(&[query], &own).remove(0);
            let cosine = |i: &usize| -> f64 {
                pool_vectors[*i].iter().zip(&query_vector).map(|(a, b)| a * b).sum()
            };
            let mut order: Vec<usize> = (0..pool.len()).collect();
            order.sort_by(|a, b| cosine(a).total_cmp(&cosine(b)));
            for count in [2, 5] {
                let shown: Vec<&str> =
                    order[pool.len() - count..].iter().map(|i| pool[*i]).collect();
                std::fs::write(&few, examples(&shown).to_string()).unwrap();
                let spelled = ["--shots", few.to_str().unwrap(), query];
                let spelled = ocelli(&[&asked[..], &spelled].concat(), "");
                // More than there are is all of them.
                let k = if count == 5 { "9" } else { "2" };
                let found = ["--shots", all.to_str().unwrap(), "--nearest", k, query];
                assert_eq!(ocelli(&[&asked[..], &found, by].concat(), ""), spelled, "{query}");
                if count == 2 {
                    said.push(spelled);
                }
            }
            orders.push(order);
        }
        // Each picture of a batch has its own examples, and so has the last picture of a prompt.
        let found = ["--shots", all.to_str().unwrap(), "--nearest", "2"];
        let both = [&asked[..], &found, by, &PICTURES[5..]].concat();
        assert_eq!(ocelli(&both, ""), said.concat());
        let shown: Vec<&str> = orders[1][pool.len() - 2..].iter().map(|i| pool[*i]).collect();
        std::fs::write(&few, examples(&shown).to_string()).unwrap();
        let question = "<image>What is it?";
        let spelled = behind(model, question, &[FOX], &["--shots", few.to_str().unwrap()]);
        assert_eq!(behind(model, question, &[FOX], &[&found[..], by].concat()), spelled);
    }
}

/// A photo that its camera turned is near to the upright one with `--upright`, else to the one that lies.
#[test]
fn what_is_near_is_told_of_upright_pictures() {
    let folder = small_flamingo(0);
    let model = folder.path();
    let at = |name: &str| Path::new(model).join(name).to_str().unwrap().to_owned();
    let (lying, turned, upright, few) = (at("a.jpg"), at("b.jpg"), at("c.png"), at("few.json"));
    let jpeg = std::fs::read(root().join("testdata/preprocess/images/china_320x213.jpg")).unwrap();
    // An EXIF segment of one field, the orientation: turn it right by a quarter.
    let exif =
        b"\xFF\xE1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    std::fs::write(&lying, &jpeg).unwrap();
    std::fs::write(&turned, [&jpeg[..2], exif, &jpeg[2..]].concat()).unwrap();
    let picture = open(&turned, &Limits::default()).unwrap().upright();
    assert_eq!((picture.width(), picture.height()), (213, 320));
    std::fs::write(&upright, encode_png(&picture.to_rgb()).unwrap()).unwrap();
    let asked = ["vqa", "-m", model, "-q", "What is it?", "-n", "8", "--shots", &few];
    let answer = |shots: &[&str], options: &[&str], picture: &str| {
        std::fs::write(&few, examples(shots).to_string()).unwrap();
        let said = ocelli(&[&asked[..], options, &[picture]].concat(), "");
        said.split_once('\n').unwrap().1.to_owned()
    };
    let both = [lying.as_str(), upright.as_str()];
    let nearest = ["--nearest", "1"];
    assert_eq!(answer(&both, &nearest, &turned), answer(&both[..1], &[], &lying));
    let seen = answer(&both, &["--nearest", "1", "--upright"], &turned);
    assert_eq!(seen, answer(&both[1..], &[], &upright));
    assert_ne!(seen, answer(&both[..1], &[], &upright), "the example makes no difference");
}
