//! TensorBoard event files: the framing of `TFRecord` around `Event` messages with one scalar each.
//!
//! A record is the length as u64, its masked CRC-32C, the bytes, and their masked CRC-32C, all
//! little-endian. Of the message only the fields for scalars are written.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes one event file; TensorBoard reads all files of a folder as one run.
#[derive(Debug)]
pub struct EventWriter(BufWriter<File>);

impl EventWriter {
    /// A new file in `folder`; `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// If the folder or file cannot be made.
    pub fn create(folder: &Path, wall_time: f64) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let name = format!("events.out.tfevents.{:.0}.{}.ocelli", wall_time, std::process::id());
        let mut writer = Self(BufWriter::new(File::create(folder.join(name))?));
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time);
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Adds the scalar `tag` at `step`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn scalar(&mut self, wall_time: f64, step: u64, tag: &str, value: f32) -> io::Result<()> {
        let mut scalar = Vec::new();
        put_bytes(&mut scalar, 1, tag.as_bytes());
        put_key(&mut scalar, 2, 5);
        scalar.extend(value.to_le_bytes());
        let mut summary = Vec::new();
        put_bytes(&mut summary, 1, &scalar);
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time);
        put_key(&mut event, 2, 0);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// Hands everything to the system, so that a reader sees it.
    ///
    /// # Errors
    /// If writing fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn record(&mut self, event: &[u8]) -> io::Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        self.0.write_all(&length)?;
        self.0.write_all(&masked_crc32c(&length).to_le_bytes())?;
        self.0.write_all(event)?;
        self.0.write_all(&masked_crc32c(event).to_le_bytes())
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// CRC-32C (Castagnoli) as `TFRecord` stores it. Bit by bit: records have some fifty bytes.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xA282_EAD8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of CRC-32C is E3069283.
        let unmasked = masked_crc32c(b"123456789").wrapping_sub(0xA282_EAD8).rotate_left(15);
        assert_eq!(unmasked, 0xE306_9283);
    }

    #[test]
    fn records_are_framed_and_hold_the_scalar() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 12.5).unwrap();
        writer.scalar(13.0, 300, "loss", 0.5).unwrap();
        writer.flush().unwrap();
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(file).unwrap();
        let mut events = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc32c(&rest[..8]).to_le_bytes());
            let event = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc32c(event).to_le_bytes());
            events.push(event.to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 2);
        assert!(events[0].ends_with(b"brain.Event:2"));
        let mut expected = vec![0x09];
        expected.extend(13.0_f64.to_le_bytes());
        expected.extend([0x10, 0xAC, 0x02, 0x2A, 13, 0x0A, 11, 0x0A, 4]);
        expected.extend(b"loss");
        expected.push(0x15);
        expected.extend(0.5_f32.to_le_bytes());
        assert_eq!(events[1], expected);
    }
}
