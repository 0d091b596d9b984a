//! Decoding a JPEG and preparing it for CLIP at 224 pixels, whole and by part.
#![allow(missing_docs, reason = "divan makes public items")]

use divan::{Bencher, black_box};
use ocelli_data::image::{Limits, Picture, Processor, decode, encode_jpeg, grained};

fn main() {
    divan::main();
}

fn jpeg(width: usize, height: usize) -> Vec<u8> {
    let picture = grained(width, height).expect("the sides are not 0");
    encode_jpeg(&picture, 90).expect("the sides fit the format")
}

const SIZES: [(usize, usize); 2] = [(4000, 3000), (640, 480)];

fn picture(size: (usize, usize)) -> Picture {
    decode(&jpeg(size.0, size.1), &Limits::default()).expect("a JPEG just made")
}

#[divan::bench(args = SIZES)]
fn decode_jpeg(bencher: Bencher, size: (usize, usize)) {
    let bytes = jpeg(size.0, size.1);
    bencher.bench(|| decode(black_box(&bytes), &Limits::default()));
}

#[divan::bench(args = SIZES)]
fn clip_224(bencher: Bencher, size: (usize, usize)) {
    let (picture, processor) = (picture(size), Processor::openai(224));
    bencher.bench(|| processor.pixels(black_box(&picture)));
}

#[divan::bench(args = SIZES)]
fn decode_and_clip_224(bencher: Bencher, size: (usize, usize)) {
    let (bytes, processor) = (jpeg(size.0, size.1), Processor::openai(224));
    bencher.bench(|| {
        let picture = decode(black_box(&bytes), &Limits::default()).expect("a JPEG just made");
        processor.pixels(&picture)
    });
}
