//! Any bytes as a video of which four frames are read: no panic, no allocation over the limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::image::{Limits, Video};

fuzz_target!(|bytes: &[u8]| {
    // The other formats do not move: `image_decode` sees all of them.
    if !bytes.starts_with(b"GIF8") && !bytes.starts_with(b"RIFF") {
        return;
    }
    let path = std::env::temp_dir().join(format!("ocelli-fuzz-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("there is room for a small file");
    let limits = Limits { max_pixels: 1 << 14, max_bytes: 1 << 20, enough: None };
    for frame in Video::open(&path, 4, &limits).into_iter().flatten() {
        let _ = frame.map(|frame| frame.to_rgb());
    }
});
