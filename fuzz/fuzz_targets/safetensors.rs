//! Any bytes as a safetensors file: what opens must read, but for the archives that bytes may turn into,
//! whose members are unpacked when they are read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_nn::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes(data.to_vec()) else { return };
    for name in checkpoint.names() {
        let (dtype, shape) = checkpoint.info(name).expect("a listed tensor has a description");
        let Ok(values) = checkpoint.read_f32(name) else {
            assert!(data.starts_with(b"PK"), "a checked place reads");
            continue;
        };
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name} {dtype}");
    }
});
