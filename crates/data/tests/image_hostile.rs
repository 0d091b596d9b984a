//! Hostile pictures: every one is an error with a clear text, none a panic or a large allocation.
#![allow(clippy::unwrap_used, reason = "a failing line names itself in a test")]

use std::path::{Path, PathBuf};

use ocelli_data::image::{Limits, PictureError, Processor, RgbImage, decode, open};

fn modes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/preprocess/modes");
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

#[test]
fn truncated_pictures_are_errors() {
    for path in modes() {
        let bytes = std::fs::read(&path).unwrap();
        // At every early byte, and in the picture data (which metadata may follow).
        let cuts = (1..bytes.len().min(200)).chain([bytes.len() / 4, bytes.len() / 2]);
        for cut in cuts {
            let result = decode(&bytes[..cut], &Limits::default());
            assert!(result.is_err(), "{} cut to {cut} of {}", path.display(), bytes.len());
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    for path in modes() {
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by(1 + bytes.len() / 300) {
            for value in [0, 0x7F, 0xFF] {
                let mut broken = bytes.clone();
                broken[at] = value;
                let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
                if let Ok(picture) = decode(&broken, &limits) {
                    Processor::openai(8).pixels(&picture).unwrap();
                }
            }
        }
    }
}

#[test]
fn things_that_are_no_pictures() {
    assert_eq!(decode(b"", &Limits::default()), Err(PictureError::Empty));
    let text = decode(b"Dear reader, this is a text.", &Limits::default()).unwrap_err();
    assert!(text.to_string().contains("Dear reader"), "{text}");
    let html = decode(b"<!DOCTYPE html><html></html>", &Limits::default());
    assert!(matches!(html, Err(PictureError::UnknownFormat { .. })), "{html:?}");
    let broken = decode(b"<svg><g>", &Limits::default()).unwrap_err();
    assert!(broken.to_string().contains("SVG"), "{broken}");
}

/// Headers that declare 60000 x 60000 pixels.
fn declared() -> Vec<(&'static str, Vec<u8>)> {
    const SIDE: u32 = 60_000;
    let png = [
        b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR".as_slice(),
        &SIDE.to_be_bytes(),
        &SIDE.to_be_bytes(),
        // RGB of 8 bits, with the checksum of exactly this header.
        &[8, 2, 0, 0, 0],
        &crc32(
            &[b"IHDR".as_slice(), &SIDE.to_be_bytes(), &SIDE.to_be_bytes(), &[8, 2, 0, 0, 0]]
                .concat(),
        )
        .to_be_bytes(),
        b"\0\0\0\0IDAT\x35\xAF\x06\x1E",
    ];
    let gif = [
        b"GIF89a".as_slice(),
        &(SIDE as u16).to_le_bytes(),
        &(SIDE as u16).to_le_bytes(),
        &[0x80, 0, 0, 0, 0, 0, 255, 255, 255, b',', 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0],
    ];
    let bmp = [
        b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".as_slice(),
        &SIDE.to_le_bytes(),
        &SIDE.to_le_bytes(),
        &[1, 0, 24, 0],
        &[0; 24],
    ];
    let jpeg = [
        b"\xFF\xD8\xFF\xC0\0\x11\x08".as_slice(),
        &(SIDE as u16).to_be_bytes(),
        &(SIDE as u16).to_be_bytes(),
        &[3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0],
        b"\xFF\xDA\0\x0C\x03\x01\0\x02\0\x03\0\0\x3F\0",
    ];
    vec![
        ("PNG", png.concat()),
        ("GIF", gif.concat()),
        ("BMP", bmp.concat()),
        ("JPEG", jpeg.concat()),
    ]
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[test]
fn huge_declared_sides_are_refused_by_the_header() {
    for (format, bytes) in declared() {
        let error = decode(&bytes, &Limits::default()).unwrap_err();
        assert!(
            matches!(error, PictureError::TooManyPixels { width: 60_000, height: 60_000, .. }),
            "{format}: {error}"
        );
    }
}

#[test]
fn an_error_names_the_file() {
    let folder = std::env::temp_dir().join(format!("ocelli-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("cut.png");
    let whole = std::fs::read(modes().iter().find(|path| path.ends_with("rgb.png")).unwrap());
    std::fs::write(&path, &whole.unwrap()[..300]).unwrap();
    let error = open(&path, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("cut.png") && error.contains("truncated PNG"), "{error}");
    let limits = Limits { max_bytes: 299, ..Limits::default() };
    let error = open(&path, &limits).unwrap_err().to_string();
    assert!(error.contains("300 bytes are over the limit of 299"), "{error}");
    assert!(open(folder.join("absent.png"), &Limits::default()).is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn elongated_pictures_cost_what_is_shown_or_are_refused() {
    let thin = RgbImage::new(2, 200_000, vec![7; 1_200_000]).unwrap().into();
    assert_eq!(Processor::openai(224).bytes(&thin).unwrap(), vec![7; 3 * 224 * 224]);
    let padded = Processor::openai(224).padded_to_square().bytes(&thin);
    assert!(matches!(padded, Err(PictureError::Elongated { .. })), "{padded:?}");
}
