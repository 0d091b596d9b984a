//! Pickles made by hand: plain values, refusals, bombs.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

fn read(bytes: &[u8]) -> Result<Pickle> {
    Pickle::read(Path::new("test.bin"), bytes)
}

#[test]
fn plain_values_are_built() {
    // {"a": [1, -2.0], "b": (True, None)}, protocol 2.
    let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00a](K\x01G\xc0\0\0\0\0\0\0\0eX\x01\x00\x00\x00b\x88N\x86u.";
    let pickle = read(bytes).unwrap();
    let Some(Node::Dict(items)) = pickle.node(pickle.root) else { panic!() };
    assert_eq!(pickle.text(items[0].0), Some("a"));
    let Some(Node::List(list)) = pickle.node(items[0].1) else { panic!() };
    assert_eq!(list[..], [Value::Int(1), Value::Float(-2.0)]);
    let Some(Node::Tuple(tuple)) = pickle.node(items[1].1) else { panic!() };
    assert_eq!(tuple[..], [Value::Bool(true), Value::None]);
    assert_eq!(pickle.len, bytes.len());
}

#[test]
fn other_classes_are_refused_by_name() {
    let cases: [(&[u8], &str); 6] = [
        (b"cos\nsystem\n(X\x02\0\0\0ls\x85R.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"(X\x02\0\0\0lsios\nsystem\n.", "os.system"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"ctorch\nload\n.", "torch.load"),
    ];
    for (bytes, name) in cases {
        match read(bytes) {
            Err(Error::Refused { class, .. }) => assert_eq!(class, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn bombs_and_nonsense_end_in_an_error() {
    let deep = [vec![b']'; MAX_OPS + 1], vec![b'.']].concat();
    assert!(matches!(read(&deep), Err(Error::Limit { .. })));
    // A shared list handed to OrderedDict again and again.
    let mut shared = b"](".to_vec();
    shared.extend(b"]NaNa".repeat(1000));
    shared.extend(b"eq\0");
    shared.extend(b"ccollections\nOrderedDict\nh\0\x85R".repeat(1000));
    shared.push(b'.');
    let pairs: usize = (read(&shared).unwrap().nodes.iter())
        .map(|node| if let Node::Dict(items) = node { items.len() } else { 0 })
        .sum();
    assert_eq!(pairs, 1000);
    let cases: [&[u8]; 12] = [
        b"",
        b".",
        b"0.",
        b"t.",
        b"(0.",
        b"(N\x86.",
        b"X\xff\xff\xff\xff",
        b"h\0.",
        b"NNs.",
        b"NR.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"I1\n.",
    ];
    for bytes in cases {
        assert!(matches!(read(bytes), Err(Error::Malformed { .. })), "{bytes:?}");
    }
}
