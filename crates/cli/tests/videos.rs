//! Videos on the command line: what a Flamingo says of one is the same wherever its frames come from, and
//! a picture is a video of one frame.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod small_flamingo;
mod widened;

use ocelli_data::image::{RgbImage, encode_png};
use safetensors::SafeTensors;
use small_flamingo::{behind, small_flamingo};
use std::path::Path;
use widened::{FOX, ROCKET, ocelli, root, texts};

const GIF: &str = "testdata/preprocess/videos/gif0.gif";
const WEBP: &str = "testdata/preprocess/videos/webp2.webp";

/// Writes the frames of a video, as Pillow reads them, to a folder in this order.
fn frames(video: &str, order: &[usize], to: &Path) {
    let stored = std::fs::read(root().join("testdata/preprocess/videos.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let tensor = stored.tensor(Path::new(video).file_name().unwrap().to_str().unwrap()).unwrap();
    let [_, height, width, _] = *tensor.shape() else { panic!("{video} has other axes") };
    std::fs::create_dir(to).unwrap();
    for (name, frame) in order.iter().enumerate() {
        let bytes = tensor.data().chunks_exact(3 * width * height).nth(*frame).unwrap().to_vec();
        let png = encode_png(&RgbImage::new(width, height, bytes).unwrap()).unwrap();
        std::fs::write(to.join(format!("{name}.png")), png).unwrap();
    }
}

#[test]
fn a_video_is_the_same_from_a_file_and_from_a_folder() {
    let folder = small_flamingo(4);
    let model = folder.path();
    let of = |frames: &str, images: &[&str]| {
        let asked = ["caption", "-m", model, "-n", "8", "--jsonl", "--frames", frames];
        texts(&ocelli(&[&asked[..], images].concat(), ""))
    };
    let dir = tempfile::tempdir().unwrap();
    let mut differs = false;
    for video in [GIF, WEBP] {
        let name = |order: &str| {
            let stem = Path::new(video).file_stem().unwrap().to_str().unwrap();
            dir.path().join(format!("{stem}-{order}"))
        };
        let (all, some, back) = (name("all"), name("some"), name("back"));
        frames(video, &[0, 1, 2, 3, 4, 5], &all);
        frames(video, &[0, 3, 5], &some);
        frames(video, &[5, 3, 0], &back);
        let [all, some, back] = [&all, &some, &back].map(|path| path.to_str().unwrap());
        let three = of("3", &[video]);
        assert_eq!(of("3", &[all]), three);
        assert_eq!(of("4", &[some]), three);
        differs |= of("3", &[back]) != three;
        // More frames than have an embedding lie between those that do.
        assert_eq!(of("6", &[video]), of("6", &[all]));
        // Videos with different numbers of frames and pictures in one call are what they are alone.
        let images = [video, ROCKET, some, all];
        let alone: Vec<String> = images.iter().flat_map(|image| of("4", &[image])).collect();
        assert_eq!(of("4", &images), alone);
        assert_ne!(alone[0], alone[1], "the model does not look");
        // Other commands see the same.
        let options = ["--frames", "3"];
        assert_eq!(behind(model, "<image>Output:", &[video], &options), three[0]);
        let chat = ["run", "-m", model, "-n", "8", "--temperature", "0", "--frames", "3"];
        let said = ocelli(&chat, &format!("/image {video}\nOutput:\n"));
        assert_eq!(said.trim(), three[0]);
    }
    assert!(differs, "the order of frames makes no difference");
}

#[test]
fn the_command_of_the_guide_runs() {
    let guide = std::fs::read_to_string(root().join("docs/cli.md")).unwrap();
    let command = guide.lines().find(|l| l.starts_with("ocelli caption") && l.contains("--frames"));
    let folder = small_flamingo(4);
    // What the guide calls its files stands for these.
    let here = |word| match word {
        "openflamingo/" => folder.path(),
        "film.gif" => GIF,
        word => word,
    };
    let asked: Vec<&str> = command.unwrap().split(' ').skip(1).map(here).collect();
    let said = texts(&ocelli(&asked, ""));
    let known = ["caption", "-m", folder.path(), "-n", "8", "--jsonl", "--frames"];
    let of = |frames| texts(&ocelli(&[&known[..], &[frames, GIF]].concat(), ""));
    assert_eq!(said, of("4"));
    assert_ne!(said, of("1"), "four frames are not one");
}

#[test]
fn a_video_of_one_frame_is_the_picture() {
    // Of pictures alone a model needs no embeddings of frames.
    let folder = small_flamingo(0);
    let asked = ["vqa", "-m", folder.path(), "-q", "What is it?", "-n", "8", "--jsonl"];
    let images = [FOX, GIF, WEBP];
    let pictures = ocelli(&[&asked[..], &images].concat(), "");
    assert_eq!(ocelli(&[&asked[..], &["--frames", "1"], &images].concat(), ""), pictures);
    let fox = ocelli(&[&asked[..], &[FOX]].concat(), "");
    assert_eq!(ocelli(&[&asked[..], &["--frames", "9", FOX]].concat(), ""), fox);
    // Without them the frames of a video are seen, but not their order.
    let video = ocelli(&[&asked[..], &["--frames", "3", GIF]].concat(), "");
    let line = |text: &str| text.lines().next().map(str::to_owned);
    assert_ne!(
        line(&video),
        line(&ocelli(&[&asked[..], &[GIF]].concat(), "")),
        "one frame is not three"
    );
}
