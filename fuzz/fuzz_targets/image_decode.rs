//! Any bytes through the picture decoders, as a video too, and a processor: no panic, no allocation over
//! the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::image::{Video, Limits, Processor, decode};

fuzz_target!(|bytes: &[u8]| {
    for enough in [None, Some(8)] {
        let limits = Limits { max_pixels: 1 << 20, max_bytes: 1 << 20, enough };
        if let Ok(picture) = decode(bytes, &limits) {
            let _ = Processor::openai(32).pixels(&picture.upright());
        }
    }
    // Of pictures that do not move the decoder above has seen all.
    if bytes.starts_with(b"GIF8") || bytes.starts_with(b"RIFF") {
        let path = std::env::temp_dir().join(format!("ocelli-fuzz-{}", std::process::id()));
        std::fs::write(&path, bytes).expect("there is room for a small file");
        let limits = Limits { max_pixels: 1 << 14, max_bytes: 1 << 20, enough: None };
        for frame in Video::open(&path, 4, &limits).into_iter().flatten() {
            let _ = frame.map(|frame| frame.to_rgb());
        }
    }
});
