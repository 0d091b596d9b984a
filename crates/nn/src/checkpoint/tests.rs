//! Checkpoints written by PyTorch and NumPy (`tools/make_checkpoint_fixtures.py`), and hostile ones.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::PathBuf;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/checkpoint").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

fn error(name: &str) -> String {
    Checkpoint::open(&fixture(name)).unwrap_err().to_string()
}

fn from_vec(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::from_bytes(bytes)
}

/// A folder of its own for one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ocelli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn both_forms_of_torch_save_give_every_tensor() {
    let count = |n: u8| (0..n).map(f32::from).collect::<Vec<_>>();
    let quarters: Vec<f32> = count(6).iter().map(|v| v / 4.0).collect();
    let grid = |rows: &[u8], columns: &[u8]| {
        let of = |r: &u8| columns.iter().map(|c| f32::from(r * 6 + c)).collect::<Vec<_>>();
        rows.iter().flat_map(of).collect::<Vec<_>>()
    };
    let transposed: Vec<f32> = (0..6).flat_map(|c| grid(&[0, 1, 2, 3], &[c])).collect();
    for file in ["zip.pt", "legacy.bin", "wrapped.pth"] {
        let checkpoint = open(file);
        let cases: [(&str, Dtype, &[usize], Vec<f32>); 17] = [
            ("f32", Dtype::F32, &[4, 6], count(24)),
            ("f16", Dtype::F16, &[2, 3], quarters.clone()),
            ("bf16", Dtype::Bf16, &[2, 3], quarters.clone()),
            ("f64", Dtype::F64, &[5], count(5)),
            ("i64", Dtype::I64, &[3], vec![-1.0, 0.0, 1.0]),
            ("i32", Dtype::I32, &[3], vec![-1.0, 0.0, 1.0]),
            ("i16", Dtype::I16, &[3], vec![-1.0, 0.0, 1.0]),
            ("i8", Dtype::I8, &[3], vec![-1.0, 0.0, 1.0]),
            ("u8", Dtype::U8, &[3], count(3)),
            ("bool", Dtype::Bool, &[3], vec![1.0, 0.0, 1.0]),
            ("transposed", Dtype::F32, &[6, 4], transposed.clone()),
            ("window", Dtype::F32, &[2, 3], grid(&[1, 2], &[2, 3, 4])),
            ("every_other", Dtype::F32, &[4, 3], grid(&[0, 1, 2, 3], &[0, 2, 4])),
            ("expanded", Dtype::F32, &[3, 2], vec![7.0; 6]),
            ("scalar", Dtype::F32, &[], vec![2.5]),
            ("empty", Dtype::F32, &[0, 4], vec![]),
            ("parameter", Dtype::F32, &[2, 2], count(4)),
        ];
        assert_eq!(checkpoint.names().count(), cases.len(), "{file}");
        for (name, dtype, shape, values) in cases {
            assert_eq!(checkpoint.info(name), Some((dtype, shape)), "{file}: {name}");
            assert_eq!(checkpoint.read_f32(name).unwrap(), values, "{file}: {name}");
        }
        assert_eq!(checkpoint.read_i64("i16").unwrap(), [-1, 0, 1]);
        assert!(matches!(checkpoint.read_i64("f32"), Err(Error::Dtype { .. })));
        assert!(matches!(checkpoint.read_f32("none"), Err(Error::MissingTensor { .. })));
        assert!(checkpoint.mapped_f32("transposed").is_none());
    }
    assert_eq!(open("wrapped.pth").metadata()["epoch"], "3");
    // A name of 21 letters, which every member's name begins with.
    assert_eq!(open("saved_by_a_long_name_.pth").read_f32("x").unwrap(), [1.0, 2.0]);
    assert_eq!(&*open("zip.pt").mapped_f32("f32").unwrap(), count(24));
}

#[test]
fn a_script_archive_gives_its_state_dict() {
    let (script, state) = (open("script.pt"), open("script_state.pt"));
    assert!(script.names().eq(state.names()));
    assert_eq!(script.names().count(), 10);
    for name in state.names() {
        assert_eq!(script.info(name), state.info(name), "{name}");
        assert_eq!(script.bytes(name).unwrap(), state.bytes(name).unwrap(), "{name}");
    }
    assert_eq!(script.info("proj"), Some((Dtype::F16, &[2, 2][..])));
    assert_eq!(script.read_f32("blocks.1.fc.weight").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(script.metadata()["context_length"], "77");
}

#[test]
fn numpy_archives_stored_and_deflated() {
    for file in ["stored.npz", "deflated.npz"] {
        let checkpoint = open(file);
        let six = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        for name in ["f4", "f8", "f2"] {
            assert_eq!(checkpoint.read_f32(name).unwrap(), six, "{file}: {name}");
        }
        assert_eq!(checkpoint.read_i64("i8").unwrap(), [-1, 0, 1]);
        assert_eq!(checkpoint.read_i64("i4").unwrap(), [-1, 0, 1]);
        assert_eq!(checkpoint.read_i64("u1").unwrap(), [0, 1, 2]);
        assert_eq!(checkpoint.read_i64("b1").unwrap(), [1, 0, 1]);
        assert_eq!(checkpoint.read_f32("bf16").unwrap(), [1.0, -2.0]);
        let values: Vec<f32> = (0u8..24).map(f32::from).collect();
        assert_eq!(checkpoint.info("fortran"), Some((Dtype::F32, &[2, 3, 4][..])));
        assert_eq!(checkpoint.read_f32("fortran").unwrap(), values);
        assert_eq!(checkpoint.read_f32("scalar").unwrap(), [2.5]);
        assert_eq!(checkpoint.info("empty"), Some((Dtype::F32, &[0, 4][..])));
        assert_eq!(checkpoint.read_f32("layer/kernel").unwrap(), [1.0; 4]);
    }
    for file in ["version2.npz", "version3.npz"] {
        assert_eq!(open(file).read_f32("x").unwrap(), [0.0, 1.0, 2.0]);
    }
    assert!(error("big_endian.npz").contains("big-endian"));
    assert!(error("objects.npz").contains("pickled objects"));
}

#[test]
fn a_jax_vit_opens() {
    let checkpoint = open("jax_vit.npz");
    let (dtype, shape) = checkpoint.info("embedding/kernel").unwrap();
    assert_eq!((dtype, shape.len()), (Dtype::F32, 4));
    let elements: usize = shape.iter().product();
    assert_eq!(checkpoint.read_f32("embedding/kernel").unwrap().len(), elements);
    assert!(checkpoint.total_bytes() > 250_000);
}

#[test]
fn shards_are_found_and_checked() {
    let checkpoint = open("sharded");
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.read_f32("c").unwrap(), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(&*checkpoint.mapped_f32("a").unwrap(), [0.0, 1.0, 2.0, 3.0]);
    assert!(checkpoint.file_of("c").unwrap().ends_with("model-00002-of-00002.safetensors"));
    assert_eq!(checkpoint.total_bytes(), 36);

    let dir = Scratch::new("shards");
    let index = dir.0.join("model.safetensors.index.json");
    let first = "model-00001-of-00002.safetensors";
    std::fs::copy(fixture("sharded").join(first), dir.0.join(first)).unwrap();
    std::fs::write(&index, format!(r#"{{"weight_map": {{"z": "{first}"}}}}"#)).unwrap();
    assert!(matches!(Checkpoint::open(&dir.0), Err(Error::MissingTensor { .. })));
    std::fs::write(&index, r#"{"weight_map": {"a": "../secret"}}"#).unwrap();
    assert!(matches!(Checkpoint::open(&dir.0), Err(Error::Malformed { .. })));
    std::fs::remove_file(&index).unwrap();
    std::fs::copy(dir.0.join(first), dir.0.join("again.safetensors")).unwrap();
    assert!(matches!(Checkpoint::open(&dir.0), Err(Error::Ambiguous { .. })));
    assert!(matches!(Checkpoint::open(&dir.0.join("none")), Err(Error::Io { .. })));
}

#[test]
fn what_is_saved_is_read() {
    let dir = Scratch::new("save");
    let path = dir.0.join("model.safetensors");
    let values: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors = [
        TensorView { name: "flag", dtype: Dtype::Bool, shape: &[1], bytes: &[1] },
        TensorView { name: "half", dtype: Dtype::F16, shape: &[], bytes: &[0, 0x3c] },
        TensorView { name: "weight", dtype: Dtype::F32, shape: &[1, 2], bytes: &values },
        TensorView { name: "none", dtype: Dtype::I64, shape: &[0], bytes: &[] },
    ];
    let metadata = BTreeMap::from([("step".to_owned(), "12".to_owned())]);
    std::fs::write(&path, "an older file").unwrap();
    save_safetensors(&path, &tensors, &metadata).unwrap();
    let checkpoint = Checkpoint::open(&dir.0).unwrap();
    assert_eq!(checkpoint.metadata(), &metadata);
    for t in tensors {
        assert_eq!(checkpoint.info(t.name), Some((t.dtype, t.shape)));
        assert_eq!(&*checkpoint.bytes(t.name).unwrap(), t.bytes);
    }
    assert_eq!(&*checkpoint.mapped_f32("weight").unwrap(), [1.5, -2.0]);
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 1, "no temporary file is left");

    let short = TensorView { name: "x", dtype: Dtype::F32, shape: &[2], bytes: &[0; 4] };
    assert!(matches!(save_safetensors(&path, &[short], &metadata), Err(Error::Tensor { .. })));
    let twice = [tensors[0], tensors[0]];
    assert!(matches!(save_safetensors(&path, &twice, &metadata), Err(Error::Tensor { .. })));
    let nowhere = dir.0.join("none/model.safetensors");
    assert!(matches!(save_safetensors(&nowhere, &tensors, &metadata), Err(Error::Io { .. })));
}

#[test]
fn malicious_pickles_are_refused_by_name() {
    for file in ["malicious.bin", "malicious.pt"] {
        let message = error(file);
        assert!(message.contains("posix.system") && message.contains(file), "{message}");
        assert!(message.contains("nothing was executed"), "{message}");
    }
    assert!(error("complex.pt").contains("complex64"));
}

fn safetensors_with(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn hostile_safetensors_headers() {
    let tensor = |shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let cases = [
        ("overlap", format!(r#"{{"a":{},"b":{}}}"#, tensor("[2]", 0, 8), tensor("[2]", 4, 12)), 12),
        ("hole", format!(r#"{{"a":{},"b":{}}}"#, tensor("[1]", 0, 4), tensor("[1]", 8, 12)), 12),
        ("twice", format!(r#"{{"a":{0},"a":{0}}}"#, tensor("[1]", 0, 4)), 4),
        ("beyond", format!(r#"{{"a":{}}}"#, tensor("[4]", 0, 16)), 8),
        ("overflow", format!(r#"{{"a":{}}}"#, tensor("[4611686018427387904,4]", 0, 0)), 0),
        ("shape", format!(r#"{{"a":{}}}"#, tensor("[3]", 0, 8)), 8),
        ("backwards", format!(r#"{{"a":{}}}"#, tensor("[1]", 8, 4)), 8),
        ("trailing", format!(r#"{{"a":{}}}"#, tensor("[1]", 0, 4)), 8),
        ("rank", format!(r#"{{"a":{}}}"#, tensor(&format!("[{}1]", "1,".repeat(99)), 0, 4)), 4),
        ("json", "{".into(), 0),
    ];
    for (what, header, data) in cases {
        assert!(from_vec(safetensors_with(&header, data)).is_err(), "{what}");
    }
    let good = format!(r#"{{"a":{}}}"#, tensor("[2]", 0, 8));
    assert!(from_vec(safetensors_with(&good, 8)).is_ok());
    for length in [1 << 63, u64::MAX, 1 << 40, 200 << 20] {
        let mut bytes = safetensors_with(&good, 8);
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        assert!(from_vec(bytes).unwrap_err().to_string().contains("safetensors"), "{length}");
    }
    let float8 = good.replace("F32", "F8_E4M3").replace("[2]", "[8]");
    assert!(matches!(from_vec(safetensors_with(&float8, 8)), Err(Error::Dtype { .. })));
    assert!(
        from_vec(b"version https://git-lfs.github.com/spec/v1\n".to_vec())
            .unwrap_err()
            .to_string()
            .contains("git lfs pull")
    );
}

/// Reads everything, so that a place that was not checked would panic.
fn read_all(bytes: Vec<u8>) -> bool {
    let Ok(checkpoint) = from_vec(bytes) else { return false };
    for name in checkpoint.names() {
        let _ = checkpoint.read_f32(name);
        let _ = checkpoint.read_i64(name);
    }
    true
}

#[test]
fn truncated_and_altered_files_never_panic() {
    let files = [
        "zip.pt",
        "legacy.bin",
        "wrapped.pth",
        "script.pt",
        "stored.npz",
        "deflated.npz",
        "sharded/model-00001-of-00002.safetensors",
    ];
    for file in files {
        let whole = std::fs::read(fixture(file)).unwrap();
        assert!(read_all(whole.clone()), "{file}");
        for len in (0..whole.len()).step_by(3).chain(whole.len() - 40..whole.len()) {
            assert!(!read_all(whole[..len].to_vec()), "{file} cut to {len} bytes");
        }
        let mut state = 1u32;
        for _ in 0..3000 {
            let mut altered = whole.clone();
            for _ in 0..2 {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                let at = (state >> 8) as usize % altered.len();
                altered[at] = if state & 1 == 0 { state as u8 } else { 0xff };
            }
            read_all(altered);
        }
    }
}

/// `torch.save`'s pickle of one tensor, with the given offset, sizes and strides.
fn legacy_with(offset: i32, sizes: &[i32], strides: &[i32], len: i32, stored: u64) -> Vec<u8> {
    let int = |value: i32| [&b"J"[..], &value.to_le_bytes()].concat();
    let tuple = |items: &[i32]| {
        [vec![b'('], items.iter().flat_map(|&i| int(i)).collect(), vec![b't']].concat()
    };
    let magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    [
        &magic[..],
        b"\x80\x02}U\x01xctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\n",
        b"U\x010U\x03cpu",
        &int(len),
        b"NtQ",
        &int(offset),
        &tuple(sizes),
        &tuple(strides),
        b"\x89NtRs.\x80\x02]U\x010a.",
        &stored.to_le_bytes(),
        &[0; 24],
    ]
    .concat()
}

#[test]
fn tensors_stay_inside_their_storage() {
    assert!(read_all(legacy_with(0, &[2, 3], &[3, 1], 6, 6)));
    assert!(read_all(legacy_with(5, &[1, 1], &[9, 9], 6, 6)));
    let bad = [
        ("negative stride", legacy_with(5, &[6], &[-1], 6, 6)),
        ("negative offset", legacy_with(-1, &[2], &[1], 6, 6)),
        ("negative size", legacy_with(0, &[-2], &[1], 6, 6)),
        ("offset beyond", legacy_with(1, &[6], &[1], 6, 6)),
        ("stride beyond", legacy_with(0, &[3], &[3], 6, 6)),
        ("ranks differ", legacy_with(0, &[3], &[1, 1], 6, 6)),
        ("storage longer than its bytes", legacy_with(0, &[6], &[1], 7, 6)),
        ("bytes beyond the file", legacy_with(0, &[6], &[1], 6, 7)),
        ("length overflows", legacy_with(0, &[6], &[1], 6, u64::MAX)),
        ("endless repetition", legacy_with(0, &[i32::MAX, i32::MAX], &[0, 0], 6, 6)),
    ];
    for (what, bytes) in bad {
        assert!(!read_all(bytes), "{what}");
    }
}

/// Modules that each hold the one before twice: 2⁴⁰ paths in 1 kB.
#[test]
fn shared_modules_and_wrappers_do_not_explode() {
    let head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let mut modules = [&head[..], b"c__torch__\nM\n)\x81q\0"].concat();
    for level in 0..40u8 {
        modules.extend(b"c__torch__\nM\n)\x81}(U\x01ah");
        modules.push(level);
        modules.extend(b"U\x01bh");
        modules.extend([level, b'u', b'b', b'q', level + 1]);
    }
    modules.extend(b".].");
    assert!(matches!(from_vec(modules), Err(Error::Limit { .. })));

    let mut wrappers = [&head[..], b"}q\0"].concat();
    for level in 0..200u8 {
        wrappers.extend(b"}(U\x05modelh");
        wrappers.extend([level, b'U', 3]);
        wrappers.extend(b"emah");
        wrappers.extend([level, b'u', b'q', level + 1]);
    }
    wrappers.extend(b".].");
    assert!(matches!(from_vec(wrappers), Err(Error::NoTensors { .. })));
}

#[test]
fn a_zip_bomb_is_refused_before_it_is_decoded() {
    let whole = std::fs::read(fixture("deflated.npz")).unwrap();
    // The sizes in the central directory: 24 bytes after each of its signatures.
    let records: Vec<usize> =
        (0..whole.len() - 4).filter(|&at| whole[at..].starts_with(b"PK\x01\x02")).collect();
    for size in [0xffff_fff0u32, 1 << 24] {
        let mut bomb = whole.clone();
        for &at in &records {
            bomb[at + 24..at + 28].copy_from_slice(&size.to_le_bytes());
        }
        let error = from_vec(bomb).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. } | Error::Limit { .. }), "{error}");
    }
}
