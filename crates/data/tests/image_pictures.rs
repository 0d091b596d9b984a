//! Pictures against Pillow 13.0.0, the Hugging Face Pillow processors (transformers 5.23.0) and
//! torchvision 0.29.2. All bytes are compared exactly, but for lossy decoders.
#![allow(clippy::unwrap_used, reason = "a failing line names itself in a test")]

use std::path::{Path, PathBuf};

use ocelli_data::image::{
    Filter, Limits, Picture, Processor, Resize, RgbImage, Window, decode, open, resize,
};
use safetensors::SafeTensors;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/preprocess")
}

fn photo(stem: &str) -> PathBuf {
    let mut files = std::fs::read_dir(data().join("images")).unwrap();
    files
        .find_map(|file| {
            let path = file.unwrap().path();
            (path.file_stem().unwrap().to_str().unwrap() == stem).then_some(path)
        })
        .unwrap()
}

fn processor(name: &str) -> Processor {
    let clip = |size: usize| {
        Processor::from_hf_json(&format!(
            r#"{{"image_processor_type": "CLIPImageProcessor", "size": {{"shortest_edge": {size}}},
                "crop_size": {size}}}"#
        ))
        .unwrap()
    };
    let exact = |class: &str, size: usize| {
        Processor::from_hf_json(&format!(
            r#"{{"image_processor_type": "{class}", "size": {size}}}"#
        ))
        .unwrap()
    };
    match name {
        "clip224" => clip(224),
        "clip336" => clip(336),
        "vit224" => exact("ViTImageProcessor", 224),
        "vit224_bicubic" => {
            Processor { filter: Filter::Bicubic, ..exact("ViTImageProcessor", 224) }
        }
        "blip384" => exact("BlipImageProcessor", 384),
        "blip2_224" => exact("BlipImageProcessor", 224),
        "llava336_pad" => clip(336).padded_to_square(),
        "openai224" => Processor::openai(224),
        _ => panic!("no processor is called {name}"),
    }
}

/// The picture of a golden case: as Pillow decoded it where decoding is lossy.
fn picture(goldens: &SafeTensors, stem: &str) -> Picture {
    let path = photo(stem);
    if path.extension().unwrap() == "jpg" {
        let decoded = goldens.tensor(&format!("{stem}/decoded_rgb")).unwrap();
        let [height, width, _] = decoded.shape() else { panic!("{stem} is no picture") };
        return RgbImage::new(*width, *height, decoded.data().to_vec()).unwrap().into();
    }
    open(path, &Limits::default()).unwrap()
}

fn check_goldens(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();
    let mut cases = 0;
    for name in goldens.names() {
        let tensor = goldens.tensor(name).unwrap();
        let (stem, case) = name.split_once('/').unwrap();
        let picture = picture(&goldens, stem);
        cases += 1;
        match case.split_once('.') {
            None => {
                let rgb = picture.to_rgb();
                assert!(rgb.bytes() == tensor.data(), "{name}: other bytes");
            }
            Some((case, "u8")) => {
                let got = processor(case).bytes(&picture).unwrap();
                assert_bytes(name, &got, tensor.data());
            }
            Some((case, _)) => {
                let expected: Vec<u32> = tensor
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes).to_bits())
                    .collect();
                let got = processor(case).pixels(&picture).unwrap();
                assert_eq!(got.len(), expected.len(), "{name}");
                let differ = got.iter().zip(&expected).filter(|(a, b)| a.to_bits() != **b).count();
                assert_eq!(differ, 0, "{name}: {differ} of {} values differ", got.len());
            }
        }
    }
    assert!(cases > 13, "only {cases} cases in {}", file.display());
}

fn assert_bytes(name: &str, got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "{name}: length");
    let differ = got.iter().zip(expected).filter(|(a, b)| a != b).count();
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differ, 0, "{name}: {differ} of {} bytes differ, first at {first:?}", got.len());
}

#[test]
fn processors_match_the_references() {
    check_goldens(&data().join("photos.safetensors"));
}

#[test]
#[ignore = "needs OCELLI_GOLDEN_PHOTOS, the path of the full golden.safetensors (7 MB)"]
fn processors_match_all_references() {
    check_goldens(Path::new(&std::env::var("OCELLI_GOLDEN_PHOTOS").unwrap()));
}

/// Mean and largest absolute difference.
fn difference(a: &[u8], b: &[u8]) -> (f64, u8) {
    assert_eq!(a.len(), b.len());
    let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let max = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    (sum as f64 / a.len() as f64, max)
}

#[test]
fn jpeg_photos_are_close_to_libjpeg_turbo() {
    let bytes = std::fs::read(data().join("photos.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();
    for stem in ["china_320x213", "coffee_301x200", "rocket_wide_400x75"] {
        let rgb = open(photo(stem), &Limits::default()).unwrap().to_rgb();
        let expected = goldens.tensor(&format!("{stem}/decoded_rgb")).unwrap();
        let (mean, max) = difference(rgb.bytes(), expected.data());
        assert!(mean < 1.0, "{stem}: mean {mean}, max {max}");
    }
}

#[test]
fn every_mode_and_format_matches_pillow() {
    let bytes = std::fs::read(data().join("modes.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();
    let openai = Processor::openai(16);
    let mut files = 0;
    let mut wrong = Vec::new();
    for name in goldens.names() {
        let Some(file) = name.strip_suffix("/rgb") else { continue };
        let picture = open(data().join("modes").join(file), &Limits::default()).unwrap();
        let lossy = file.ends_with("jpg") || file == "lossy.webp";
        let mut check = |what: &str, got: &[u8]| {
            let golden = goldens.tensor(&format!("{file}/{what}")).unwrap();
            if got.len() != golden.data().len() {
                wrong.push(format!("{file}/{what}: {} bytes", got.len()));
                return;
            }
            let (mean, max) = difference(got, golden.data());
            if mean > if lossy { 1.0 } else { 0.0 } {
                wrong.push(format!("{file}/{what}: mean {mean}, max {max}"));
            }
        };
        check("rgb", picture.to_rgb().bytes());
        // Grey of 16 bits is clipped before it is resized, not after: the one order that differs.
        if !file.starts_with("gray16") {
            check("openai", &openai.bytes(&picture).unwrap());
        }
        files += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(files, 38);
}

#[test]
fn resizing_matches_pillow() {
    let bytes = std::fs::read(data().join("modes.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();
    let noise = goldens.tensor("noise").unwrap();
    let [height, width, _] = noise.shape() else { panic!("the noise is no picture") };
    let red: Vec<u8> = noise.data().chunks_exact(3).map(|v| v[0]).collect();
    let mut cases = 0;
    for name in goldens.names() {
        let ["resize", channels, filter, size] = name.split('/').collect::<Vec<_>>()[..] else {
            continue;
        };
        let (channels, input) = if channels == "1" { (1, &red[..]) } else { (3, noise.data()) };
        let filter = match filter {
            "nearest" => Filter::Nearest,
            "bilinear" => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        let (to_width, to_height) = size.split_once('x').unwrap();
        let size = (to_width.parse().unwrap(), to_height.parse().unwrap());
        let all = Window::all(size.0, size.1);
        let got = resize(input, (*width, *height), channels, size, filter, &all);
        assert_bytes(name, &got, goldens.tensor(name).unwrap().data());
        cases += 1;
    }
    assert_eq!(cases, 54);
}

#[test]
fn without_resizing_pictures_keep_their_size() {
    let picture: Picture = RgbImage::new(3, 2, vec![9; 18]).unwrap().into();
    let processor = Processor { resize: Resize::None, crop: None, ..Processor::openai(4) };
    assert_eq!(processor.size(), None);
    assert_eq!(processor.size_for(3, 2).unwrap(), (3, 2));
    assert_eq!(processor.pixels(&picture).unwrap().len(), 18);
}

/// Smooth colours, as `width * height` RGB bytes through a JPEG of quality 95.
fn smooth_jpeg(width: u32, height: u32) -> Vec<u8> {
    let wave = |at: u32, of: u32| ((at as f32 / of as f32 * 9.0).sin() * 100.0 + 128.0) as u8;
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| [wave(x, width), wave(y, height), wave(x + y, width + height)])
        .collect();
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95)
        .encode(&pixels, width, height, image::ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

#[test]
fn a_part_of_a_jpeg_is_enough() {
    let bytes = smooth_jpeg(640, 472);
    let whole = decode(&bytes, &Limits::default()).unwrap();
    let part_of = |enough| decode(&bytes, &Limits { enough: Some(enough), ..Limits::default() });
    for (enough, size) in [(59, (80, 59)), (60, (160, 118)), (119, (320, 236)), (237, (640, 472))] {
        let part = part_of(enough).unwrap();
        assert_eq!((part.width(), part.height()), size, "{enough}");
        assert_eq!(part.full_size(), (640, 472));
    }
    assert_eq!(part_of(237).unwrap(), whole);

    let processor = Processor::openai(96);
    let bytes_of = |picture: &Picture| processor.bytes(picture).unwrap();
    let part = part_of(processor.enough().unwrap()).unwrap();
    assert_eq!(part.width(), 160);
    let (part, whole) = (bytes_of(&part), bytes_of(&whole));
    let difference: u32 = part.iter().zip(&whole).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    let mean = difference as f32 / whole.len() as f32;
    assert!(mean < 1.0, "{mean} of 255");
}
