//! `ocelli preprocess` gives what the processors of BLIP, BLIP-2 and LLaVA give, bit for bit where the
//! picture was decoded as they decode it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_data::image::{RgbImage, encode_png};
use ocelli_nn::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A configuration of the golden files, with pictures of another size.
fn config(name: &str, size: usize) -> Value {
    let text = fs::read(root().join("testdata/golden").join(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["vision_config"]["image_size"] = size.into();
    config
}

/// The processor of LLaVA: `CLIPImageProcessor`, or with padding.
fn llava(pads: bool) -> Value {
    let kind = if pads { "LlavaImageProcessor" } else { "CLIPImageProcessor" };
    json!({ "image_processor_type": kind, "do_pad": pads, "size": { "shortest_edge": 336 },
        "crop_size": { "height": 336, "width": 336 } })
}

fn blip(size: usize) -> Value {
    json!({ "image_processor_type": "BlipImageProcessor",
        "size": { "height": size, "width": size } })
}

/// LLaVA of the original code, whose tower tells the size and whose configuration pads.
fn original() -> Value {
    json!({ "model_type": "llava", "mm_vision_tower": "vision_tower", "image_aspect_ratio": "pad",
        "mm_hidden_size": 48, "mm_projector_type": "linear" })
}

#[test]
fn pictures_equal_those_of_the_references() {
    let golden = Checkpoint::open(&root().join("testdata/preprocess/photos.safetensors")).unwrap();
    let dir = std::env::temp_dir().join(format!("ocelli-preprocess-{}", std::process::id()));
    let nothing = Value::Null;
    for (name, config, processor, tower) in [
        ("astronaut_143x190/blip2_224.u8", config("blip/caption", 224), blip(224), &nothing),
        ("astronaut_143x190/blip2_224.u8", config("blip/caption", 224), Value::Null, &nothing),
        ("coffee_301x200/llava336_pad.u8", config("llava/hf_v15", 336), llava(true), &nothing),
        ("coffee_301x200/llava336_pad.u8", original(), Value::Null, &llava(false)),
    ] {
        fs::create_dir_all(dir.join("vision_tower")).unwrap();
        for (file, value) in [
            ("config.json", &config),
            ("preprocessor_config.json", &processor),
            ("vision_tower/config.json", tower),
            ("vision_tower/preprocessor_config.json", tower),
        ] {
            if !value.is_null() {
                fs::write(dir.join(file), value.to_string()).unwrap();
            }
        }
        // A JPEG as the reference decoded it.
        let stem = name.split('/').next().unwrap();
        let mut picture = root().join("testdata/preprocess/images").join(format!("{stem}.png"));
        if !picture.is_file() {
            let decoded = format!("{stem}/decoded_rgb");
            let shape = golden.info(&decoded).unwrap().1.to_vec();
            let bytes = golden.bytes(&decoded).unwrap().to_vec();
            picture = dir.join("picture.png");
            let rgb = RgbImage::new(shape[1], shape[0], bytes).unwrap();
            fs::write(&picture, encode_png(&rgb).unwrap()).unwrap();
        }
        let out = dir.join("out.safetensors");
        let output = Command::new(env!("CARGO_BIN_EXE_ocelli"))
            .arg("preprocess")
            .arg("-m")
            .args([&dir, &picture])
            .arg("-o")
            .arg(&out)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        let pixels = Checkpoint::open(&out).unwrap().read_f32("pixel_values").unwrap();
        let bytes = golden.bytes(name).unwrap();
        assert_eq!(pixels.len(), bytes.len(), "{name}");
        let mean = [0.481_454_66_f32, 0.457_827_5, 0.408_210_73];
        let std = [0.268_629_54_f32, 0.261_302_6, 0.275_777_1];
        let plane = bytes.len() / 3;
        for (i, (value, byte)) in pixels.iter().zip(bytes.iter()).enumerate() {
            let expected = (f32::from(*byte) / 255.0 - mean[i / plane]) / std[i / plane];
            assert_eq!(value.to_bits(), expected.to_bits(), "{name}: {i}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
