//! PyTorch checkpoints: the zip form and the legacy form of `torch.save`, and TorchScript archives.
//!
//! Where the state dict is: the first of the keys in [`WRAPPERS`] that holds a dict with tensors
//! wins, again inside that dict; else the dict's own tensors; else the only dict with tensors
//! among its values. A prefix `module.` that all names share is dropped. Numbers and strings
//! beside the tensors become metadata. A TorchScript module gives its tensors under the dotted
//! path of its attributes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::Contents;
use super::entry::{Entry, Source};
use super::error::{Error, Result};
use super::pickle::{Element, MAX_PICKLE, Node, Pickle, Storage, Tensor, Value};

/// The keys under which training programs wrap a state dict, best first.
const WRAPPERS: [&str; 7] =
    ["state_dict", "model", "model_state_dict", "module", "ema", "model_ema", "state_dict_ema"];
/// The most wrappers, or nested modules, on the way to a tensor.
const MAX_DEPTH: usize = 64;
/// The most tensors and attributes of one checkpoint.
const MAX_TENSORS: usize = 200_000;
/// The most bytes of one name or noted string.
const MAX_TEXT: usize = 1024;

/// The first integer of a legacy file, little-endian.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL: i64 = 1001;

/// The bytes of each storage, by its key in the pickle.
type Storages = HashMap<String, Source>;

/// Whether a zip archive is one of PyTorch's.
pub(super) fn is_archive(members: &BTreeMap<String, Source>) -> bool {
    prefix(members).is_some()
}

/// The folder inside the archive that holds `data.pkl`, with its slash.
fn prefix(members: &BTreeMap<String, Source>) -> Option<&str> {
    members.keys().filter_map(|name| name.strip_suffix("data.pkl")).find(|prefix| {
        prefix.is_empty() || (prefix.ends_with('/') && prefix.matches('/').count() == 1)
    })
}

/// Reads an archive: `X/data.pkl`, `X/data/KEY` for each storage, `X/byteorder`.
pub(super) fn read_archive(
    path: &Path,
    file: &[u8],
    members: &BTreeMap<String, Source>,
) -> Result<Contents> {
    let damaged = |reason| Error::Malformed { path: path.to_path_buf(), format: "PyTorch", reason };
    let prefix = prefix(members).ok_or_else(|| damaged("no data.pkl".into()))?;
    if let Some(order) = members.get(&format!("{prefix}byteorder")) {
        let order = order.read(file, 16).map_err(damaged)?;
        if order.trim_ascii() != b"little" {
            return Err(Error::Unsupported {
                path: path.to_path_buf(),
                found: format!("a checkpoint in {} byte order", String::from_utf8_lossy(&order)),
                action: "save it on a little-endian machine",
            });
        }
    }
    let source = &members[&format!("{prefix}data.pkl")];
    if source.len() > MAX_PICKLE {
        return Err(Error::Limit {
            path: path.to_path_buf(),
            what: "the length of a pickle, in bytes,",
            found: source.len() as u64,
            limit: MAX_PICKLE as u64,
        });
    }
    let pickle = Pickle::read(path, &source.read(file, MAX_PICKLE).map_err(damaged)?)?;
    let data = format!("{prefix}data/");
    let storages = members
        .iter()
        .filter_map(|(name, source)| Some((name.strip_prefix(&data)?.to_owned(), source.clone())))
        .collect();
    contents(path, &pickle, &storages)
}

/// Reads the legacy form: pickles of a magic number, a protocol, facts about the machine, the
/// object and the list of storage keys; then, for each key, a length and the elements.
pub(super) fn read_legacy(path: &Path, file: &[u8]) -> Result<Contents> {
    let damaged = |reason| Error::Malformed { path: path.to_path_buf(), format: "PyTorch", reason };
    let mut at = 0;
    let mut next = || -> Result<Pickle> {
        let pickle = Pickle::read(path, &file[at..])?;
        at += pickle.len;
        Ok(pickle)
    };
    let magic = next()?;
    if !matches!(magic.node(magic.root), Some(Node::BigInt(digits)) if digits[..] == LEGACY_MAGIC) {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            found: "a pickle that torch.save did not write".into(),
            action: "save the state_dict with torch.save or as safetensors",
        });
    }
    if next()?.root != Value::Int(LEGACY_PROTOCOL) {
        return Err(damaged("unknown protocol of the legacy form".into()));
    }
    let machine = next()?;
    if let Some(Node::Dict(facts)) = machine.node(machine.root)
        && facts.iter().any(|&(key, value)| {
            machine.text(key) == Some("little_endian") && value == Value::Bool(false)
        })
    {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            found: "a checkpoint in big byte order".into(),
            action: "save it on a little-endian machine",
        });
    }
    let object = next()?;
    let keys = next()?;
    let Some(Node::List(keys_list)) = keys.node(keys.root) else {
        return Err(damaged("no list of storage keys".into()));
    };
    let mut elements = HashMap::new();
    for node in &object.nodes {
        if let Node::Storage(Storage { element, key, .. }) = node
            && let Node::Text(key) = &object.nodes[*key]
        {
            elements.insert(key.as_str(), *element);
        }
    }
    let mut storages = Storages::new();
    for &key in keys_list {
        let key = keys.text(key).ok_or_else(|| damaged("a storage key is no string".into()))?;
        let size = match elements.get(key) {
            Some(Element::Known(dtype)) => dtype.size(),
            Some(Element::Other(found)) => {
                return Err(Error::Dtype {
                    path: path.to_path_buf(),
                    tensor: format!("storage {key}"),
                    found: (*found).into(),
                    expected: "a real or integer type",
                });
            }
            None => return Err(damaged(format!("storage {key} belongs to no tensor"))),
        };
        let range = (|| {
            let data = at.checked_add(8)?;
            let len = u64::from_le_bytes(file.get(at..data)?.try_into().ok()?);
            let end = usize::try_from(len).ok()?.checked_mul(size)?.checked_add(data)?;
            (end <= file.len()).then_some(data..end)
        })();
        let range = range.ok_or_else(|| damaged(format!("storage {key} ends after the file")))?;
        at = range.end;
        storages.insert(key.to_owned(), Source::Stored(range));
    }
    contents(path, &object, &storages)
}

/// Finds the tensors of a pickle and places them in their storages.
fn contents(path: &Path, pickle: &Pickle, storages: &Storages) -> Result<Contents> {
    let mut found = Found {
        path,
        pickle,
        tensors: BTreeMap::new(),
        notes: BTreeMap::new(),
        holding: HashMap::new(),
        visited: 0,
    };
    match pickle.node(pickle.root) {
        Some(Node::Dict(_)) => found.state_dict(pickle.root, 0)?,
        Some(Node::Module(_)) => found.module(pickle.root, "", 0)?,
        _ => {}
    }
    if found.tensors.is_empty() {
        return Err(Error::NoTensors { path: path.to_path_buf(), keys: found.keys() });
    }
    let Found { tensors, notes: metadata, .. } = found;
    let shared = tensors.keys().all(|name| name.starts_with("module.") && name.len() > 7);
    let mut contents = Contents { entries: BTreeMap::new(), metadata };
    for (name, tensor) in tensors {
        let name = if shared { name["module.".len()..].to_owned() } else { name };
        let entry = place(path, pickle, storages, &name, tensor)?;
        contents.entries.insert(name, entry);
    }
    Ok(contents)
}

fn place(
    path: &Path,
    pickle: &Pickle,
    storages: &Storages,
    name: &str,
    tensor: &Tensor,
) -> Result<Entry> {
    let wrong = |reason| Error::Tensor { path: path.to_path_buf(), tensor: name.into(), reason };
    let known = |element| match element {
        Element::Known(dtype) => Ok(dtype),
        Element::Other(found) => Err(Error::Dtype {
            path: path.to_path_buf(),
            tensor: name.into(),
            found: found.into(),
            expected: "a real or integer type",
        }),
    };
    let dtype = known(tensor.element)?;
    let stored = known(tensor.storage.element)?;
    let key = pickle.text(Value::Node(tensor.storage.key)).unwrap_or_default();
    let source =
        storages.get(key).ok_or_else(|| wrong(format!("no storage {key:?} in the file")))?;
    if tensor.storage.len.checked_mul(stored.size()).is_none_or(|size| size > source.len()) {
        let (elements, found) = (tensor.storage.len, source.len());
        return Err(wrong(format!("storage {key} holds {found} bytes, not {elements} {stored}s")));
    }
    let first = tensor.storage.first.checked_mul(stored.size());
    let start =
        tensor.offset.checked_mul(dtype.size()).zip(first).and_then(|(a, b)| a.checked_add(b));
    let start = start.ok_or_else(|| wrong(format!("offset {} overflows", tensor.offset)))?;
    Entry::strided(dtype, tensor.shape.clone(), &tensor.strides, source.clone(), start)
        .map_err(wrong)
}

/// The tensors and notes of a pickle, as they are found.
struct Found<'a> {
    path: &'a Path,
    pickle: &'a Pickle,
    tensors: BTreeMap<String, &'a Tensor>,
    notes: BTreeMap<String, String>,
    /// Whether the dict of this node holds tensors, once that is known.
    holding: HashMap<usize, bool>,
    visited: usize,
}

impl<'a> Found<'a> {
    fn dict(&self, value: Value) -> Option<&'a [(Value, Value)]> {
        match self.pickle.node(value)? {
            Node::Dict(items) => Some(items),
            _ => None,
        }
    }

    fn is_tensor(&self, value: Value) -> bool {
        matches!(self.pickle.node(value), Some(Node::Tensor(_)))
    }

    /// Whether a dict, or one wrapped in it, holds tensors. Each dict is looked at once, however
    /// often it is shared.
    fn holds_tensors(&mut self, value: Value, depth: usize) -> bool {
        let (Value::Node(id), Some(items)) = (value, self.dict(value)) else { return false };
        if let Some(&known) = self.holding.get(&id) {
            return known;
        }
        self.holding.insert(id, false); // what a dict inside itself adds
        let holds = items.iter().any(|&(_, value)| self.is_tensor(value))
            || (depth < MAX_DEPTH
                && items.iter().any(|&(key, value)| {
                    self.pickle.text(key).is_some_and(|key| WRAPPERS.contains(&key))
                        && self.holds_tensors(value, depth + 1)
                }));
        self.holding.insert(id, holds);
        holds
    }

    /// The rule in this file's first comment.
    fn state_dict(&mut self, root: Value, depth: usize) -> Result<()> {
        let Some(items) = self.dict(root) else { return Ok(()) };
        for wrapper in WRAPPERS {
            let inner =
                items.iter().rev().find(|&&(key, _)| self.pickle.text(key) == Some(wrapper));
            if let Some(&(_, inner)) = inner
                && depth < MAX_DEPTH
                && self.holds_tensors(inner, 0)
            {
                self.note_all(items);
                return self.state_dict(inner, depth + 1);
            }
        }
        if !items.iter().any(|&(_, value)| self.is_tensor(value)) {
            let mut inner = Vec::new();
            for &(_, value) in items {
                if self.holds_tensors(value, 0) {
                    inner.push(value);
                }
            }
            if let ([only], true) = (&inner[..], depth < MAX_DEPTH) {
                self.note_all(items);
                return self.state_dict(*only, depth + 1);
            }
        }
        for &(key, value) in items {
            match self.pickle.text(key) {
                Some(name) if name.len() <= MAX_TEXT => self.take(name.to_owned(), value)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn note_all(&mut self, items: &[(Value, Value)]) {
        for &(key, value) in items {
            if let Some(name) = self.pickle.text(key) {
                self.note(name, value);
            }
        }
    }

    /// The tensors of a TorchScript module, and of the modules inside it.
    fn module(&mut self, module: Value, prefix: &str, depth: usize) -> Result<()> {
        let Some(Node::Module(Some(attributes))) = self.pickle.node(module) else { return Ok(()) };
        let Some(items) = self.dict(*attributes) else { return Ok(()) };
        for &(key, value) in items {
            let Some(key) = self.pickle.text(key) else { continue };
            if depth > MAX_DEPTH || prefix.len() + key.len() > MAX_TEXT {
                return Err(self.limit("the depth of nested modules", MAX_DEPTH));
            }
            let name = format!("{prefix}{key}");
            if let Some(Node::Module(_)) = self.pickle.node(value) {
                self.count()?;
                self.module(value, &format!("{name}."), depth + 1)?;
            } else {
                self.take(name, value)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, name: String, value: Value) -> Result<()> {
        self.count()?;
        if let Some(Node::Tensor(tensor)) = self.pickle.node(value) {
            self.tensors.insert(name, tensor);
        } else {
            self.note(&name, value);
        }
        Ok(())
    }

    fn note(&mut self, name: &str, value: Value) {
        let text = match value {
            Value::Bool(flag) => flag.to_string(),
            Value::Int(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::None => return,
            Value::Node(_) => match self.pickle.text(value) {
                Some(text) if text.len() <= MAX_TEXT => text.to_owned(),
                _ => return,
            },
        };
        if name.len() <= MAX_TEXT {
            self.notes.insert(name.to_owned(), text);
        }
    }

    fn count(&mut self) -> Result<()> {
        self.visited += 1;
        if self.visited > MAX_TENSORS {
            return Err(self.limit("the number of tensors and attributes", MAX_TENSORS));
        }
        Ok(())
    }

    fn limit(&self, what: &'static str, limit: usize) -> Error {
        let limit = limit as u64;
        Error::Limit { path: self.path.to_path_buf(), what, found: limit + 1, limit }
    }

    /// Up to twenty keys of the outermost dict, for an error.
    fn keys(&self) -> Vec<String> {
        let items = self.dict(self.pickle.root).unwrap_or_default();
        let keys = items.iter().filter_map(|&(key, _)| self.pickle.text(key));
        keys.take(20).map(|key| key.chars().take(60).collect()).collect()
    }
}
