//! Any bytes as a GGUF file: no panic, no allocation beyond the file, and every tensor is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_nn::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    let header = [b"GGUF\x03\0\0\0", data].concat();
    let Ok(checkpoint) = Checkpoint::from_bytes(header) else { return };
    for name in checkpoint.names() {
        let (dtype, shape) = checkpoint.info(name).expect("it was named");
        let values = checkpoint.read_f32(name).expect("its place was checked");
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{dtype}");
    }
});
