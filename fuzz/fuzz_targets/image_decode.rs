//! Any bytes through the picture decoders and a processor: no panic, no allocation over the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::image::{Limits, Processor, decode};

fuzz_target!(|bytes: &[u8]| {
    for enough in [None, Some(8)] {
        let limits = Limits { max_pixels: 1 << 20, max_bytes: 1 << 20, enough };
        if let Ok(picture) = decode(bytes, &limits) {
            let _ = Processor::openai(32).pixels(&picture.upright());
        }
    }
});
