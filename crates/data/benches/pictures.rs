//! Decoding a JPEG and preparing it for CLIP at 224 pixels, whole and by part.
#![allow(missing_docs, reason = "divan makes public items")]

use divan::{Bencher, black_box};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use ocelli_data::image::{Limits, Picture, Processor, decode};

fn main() {
    divan::main();
}

/// Smooth colours with fine texture, as a photo compresses: quality 90.
fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut noise = 1_u32;
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let grain = (noise >> 28) as u8;
            let wave = ((x as f32 / 37.0).sin() * (y as f32 / 53.0).cos() * 90.0 + 110.0) as u8;
            [wave + grain, wave / 2 + grain, (x * 200 / width) as u8 + grain]
        })
        .collect();
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode(&pixels, width, height, ExtendedColorType::Rgb8)
        .expect("the sides fit the pixels");
    bytes
}

const SIZES: [(u32, u32); 2] = [(4000, 3000), (640, 480)];

fn picture(size: (u32, u32)) -> Picture {
    decode(&jpeg(size.0, size.1), &Limits::default()).expect("a JPEG just made")
}

#[divan::bench(args = SIZES)]
fn decode_jpeg(bencher: Bencher, size: (u32, u32)) {
    let bytes = jpeg(size.0, size.1);
    bencher.bench(|| decode(black_box(&bytes), &Limits::default()));
}

#[divan::bench(args = SIZES)]
fn clip_224(bencher: Bencher, size: (u32, u32)) {
    let (picture, processor) = (picture(size), Processor::openai(224));
    bencher.bench(|| processor.pixels(black_box(&picture)));
}

#[divan::bench(args = SIZES)]
fn decode_and_clip_224(bencher: Bencher, size: (u32, u32)) {
    let (bytes, processor) = (jpeg(size.0, size.1), Processor::openai(224));
    bencher.bench(|| {
        let picture = decode(black_box(&bytes), &Limits::default()).expect("a JPEG just made");
        processor.pixels(&picture)
    });
}
