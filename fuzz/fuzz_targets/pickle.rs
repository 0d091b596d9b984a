//! Any bytes as the object of a legacy `torch.save` file, and as a whole file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_nn::checkpoint::Checkpoint;

/// The magic number, the protocol and an empty description of the machine.
const LEGACY: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

fuzz_target!(|data: &[u8]| {
    for bytes in [data.to_vec(), [LEGACY, data].concat()] {
        let Ok(checkpoint) = Checkpoint::from_bytes(bytes) else { continue };
        for name in checkpoint.names() {
            let _ = checkpoint.read_f32(name);
        }
    }
});
