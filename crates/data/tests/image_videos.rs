//! Videos against Pillow 13.0.0, whose frames `testdata/preprocess/make_videos.py` wrote down: GIFs and
//! animated WebP files with every way to dispose of a frame and to put one on another.
#![allow(clippy::unwrap_used, reason = "a failing line names itself in a test")]

use std::path::{Path, PathBuf};

use ocelli_data::image::{Limits, Processor, Video, encode_png, open};
use safetensors::SafeTensors;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/preprocess")
}

fn frames(path: &Path, frames: usize) -> Vec<Vec<u8>> {
    let video = Video::open(path, frames, &Limits::default()).unwrap();
    video.map(|frame| frame.unwrap().to_rgb().into_bytes()).collect()
}

fn error(path: &Path) -> String {
    let video = Video::open(path, 6, &Limits::default());
    let frames = video.and_then(Iterator::collect::<Result<Vec<_>, _>>);
    frames.unwrap_err().to_string()
}

/// Compares all videos in a folder; of how many frames all bytes are the same.
fn check(folder: &Path) -> usize {
    let stored = std::fs::read(folder.join("videos.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let mut exact = 0;
    for (name, expected) in stored.tensors() {
        let path = folder.join("videos").join(&name);
        let got = frames(&path, 6);
        assert_eq!(got.len(), 6, "{name}");
        for (i, (got, expected)) in
            got.iter().zip(expected.data().chunks_exact(got[0].len())).enumerate()
        {
            if name.starts_with("lossy") {
                let off: usize =
                    got.iter().zip(expected).map(|(a, b)| a.abs_diff(*b) as usize).sum();
                assert!(off <= got.len(), "{name}, frame {i}: {off} in {}", got.len());
            } else {
                let differ = got.iter().zip(expected).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "{name}, frame {i}: {differ} of {} bytes", got.len());
                exact += 1;
            }
        }
    }
    exact
}

#[test]
fn frames_are_those_of_pillow() {
    assert_eq!(check(&data()), 12 * 6);
}

#[test]
#[ignore = "needs OCELLI_FILMS, where `make_videos.py TO SEEDS` wrote more of them"]
fn frames_of_many_videos_are_those_of_pillow() {
    let exact = check(Path::new(&std::env::var("OCELLI_FILMS").unwrap()));
    assert!(exact > 12 * 6, "only {exact} frames");
}

/// Some frames of a video are those of the whole, a folder of them is the same video, and one frame is
/// the picture that others see.
#[test]
fn some_frames_a_folder_and_a_picture() {
    let path = data().join("videos/gif0.gif");
    let all = frames(&path, 6);
    assert_eq!(frames(&path, 100), all);
    assert_eq!(frames(&path, 3), [0, 3, 5].map(|i| all[i].clone()));
    let dir = tempfile::tempdir().unwrap();
    for (i, frame) in Video::open(&path, 6, &Limits::default()).unwrap().enumerate() {
        let png = encode_png(&frame.unwrap().to_rgb()).unwrap();
        std::fs::write(dir.path().join(format!("{i}.png")), png).unwrap();
    }
    std::fs::write(dir.path().join("notes.txt"), "no frame").unwrap();
    std::fs::write(dir.path().join(".hidden.png"), "no frame").unwrap();
    for n in [1, 3, 6] {
        assert_eq!(frames(dir.path(), n), frames(&path, n), "{n} frames");
    }
    for still in ["videos/webp1.webp", "videos/gif1.gif", "images/flower_96x64.png"] {
        let still = data().join(still);
        let mut video = Video::open(&still, 1, &Limits::default()).unwrap();
        let picture = open(&still, &Limits::default()).unwrap();
        assert_eq!((video.len(), video.next().unwrap().unwrap()), (1, picture));
    }
    let still = data().join("modes/palette.gif");
    let mut video = Video::open(&still, 8, &Limits::default()).unwrap();
    assert_eq!(video.next().unwrap().unwrap(), open(&still, &Limits::default()).unwrap());
}

/// What is behind the end that a file names is ignored, even if it looks like another frame.
#[test]
fn bytes_behind_a_webp_are_ignored() {
    let path = data().join("videos/webp0.webp");
    let (whole, all) = (std::fs::read(&path).unwrap(), frames(&path, 9));
    let last = whole.windows(4).rposition(|name| name == b"ANMF").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for more in [&b"\0"[..], b"no chunk", b"ANMF\xFF\xFF\xFF\x7F", &whole[last..]] {
        let longer = dir.path().join("longer.webp");
        std::fs::write(&longer, [&whole, more].concat()).unwrap();
        assert_eq!(frames(&longer, 9), all, "{} bytes more", more.len());
    }
}

#[test]
fn a_broken_frame_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gif0.gif", "webp0.webp"] {
        let whole = std::fs::read(data().join("videos").join(name)).unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        let error = error(&path);
        assert!(error.contains(&format!("{name}: frame 6: broken or truncated")), "{error}");
    }
    let folder = dir.path().join("frames");
    std::fs::create_dir(&folder).unwrap();
    assert!(error(&folder).contains("no picture in this folder"));
    std::fs::copy(data().join("images/flower_96x64.png"), folder.join("0.png")).unwrap();
    std::fs::write(folder.join("1.png"), "no picture").unwrap();
    let error = error(&folder);
    assert!(error.contains("1.png: frame 2: not a picture"), "{error}");
}

/// A GIF of no pixels to speak of may not have frames without end, and broken bytes never panic.
#[test]
fn hostile_videos_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.gif");
    let mut long = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xFF\xFF\xFF".to_vec();
    for _ in 0..10_001 {
        long.extend_from_slice(b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0");
    }
    long.push(b';');
    std::fs::write(&path, long).unwrap();
    assert!(error(&path).contains("a video of more than 10000 frames"));
    let limits = Limits { max_pixels: 1 << 16, ..Limits::default() };
    for name in ["gif1.gif", "webp1.webp", "lossy_webp0.webp"] {
        let whole = std::fs::read(data().join("videos").join(name)).unwrap();
        for at in (0..whole.len()).step_by(1 + whole.len() / 200) {
            for value in [0, 0x7F, 0xFF] {
                let mut broken = whole.clone();
                broken[at] = value;
                std::fs::write(&path, broken).unwrap();
                for frame in Video::open(&path, 4, &limits).into_iter().flatten().flatten() {
                    Processor::openai(8).pixels(&frame).unwrap();
                }
            }
            std::fs::write(&path, &whole[..at]).unwrap();
            let video = Video::open(&path, 6, &limits);
            assert!(
                video.and_then(Iterator::collect::<Result<Vec<_>, _>>).is_err()
                    || at + 2 > whole.len()
            );
        }
    }
}
