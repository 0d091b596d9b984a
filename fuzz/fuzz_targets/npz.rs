//! Any bytes as a zip archive, and as the only `.npy` member of a sound one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_nn::checkpoint::Checkpoint;

fuzz_target!(|data: &[u8]| {
    for bytes in [data.to_vec(), archive(data)] {
        let Ok(checkpoint) = Checkpoint::from_bytes(bytes) else { continue };
        for name in checkpoint.names() {
            let _ = checkpoint.read_f32(name);
        }
    }
});

/// A zip archive of one stored member, `x.npy`; its checksum is left zero, as nothing checks it.
fn archive(data: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"x.npy";
    let word = |value: usize| u32::try_from(value).expect("fuzz inputs are small").to_le_bytes();
    let member = [
        &[0; 12][..], // flags, method "stored", time, date, checksum
        &word(data.len()),
        &word(data.len()),
        &[5, 0, 0, 0], // length of the name, of the extra field
    ]
    .concat();
    let mut zip = [b"PK\x03\x04\x14\0", &member[..], NAME, data].concat();
    let directory_at = zip.len();
    zip.extend([b"PK\x01\x02\x14\0\x14\0", &member[..], &[0; 14], NAME].concat());
    let directory_len = zip.len() - directory_at;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend([word(directory_len), word(directory_at)].concat());
    zip.extend([0, 0]);
    zip
}
