//! A restricted unpickler: it builds tensors, plain containers and attribute bags, and refuses
//! everything else by name. Nothing a pickle names is ever called.
//!
//! Opcodes are those that protocols 2 to 5 use. Values live in one arena and refer to each other
//! by index, so cycles and deep nesting cost no recursion. Memory is linear in the number of
//! opcodes, which [`MAX_OPS`] bounds at about 200 MB.

mod class;

use std::collections::HashMap;
use std::path::Path;

use super::entry::MAX_RANK;
use super::error::{Error, Result};
use class::{Class, allowed};

pub(super) use class::Element;

/// The most opcodes one pickle may have; a checkpoint of 2,000 tensors has about 80,000.
const MAX_OPS: usize = 2_000_000;
/// The longest pickle, in bytes; tensors lie outside of it.
pub(super) const MAX_PICKLE: usize = 64 << 20;
/// The longest class name that is looked at, in bytes.
const MAX_CLASS_NAME: usize = 1024;

/// A pickled value; the large ones are nodes of the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(usize),
}

/// A value of more than one word.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    /// An integer beyond 64 bits, as its little-endian bytes.
    BigInt(Vec<u8>),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Class(Class),
    /// A TorchScript module: the dict of its attributes, once that is set.
    Module(Option<Value>),
    Storage(Storage),
    Tensor(Tensor),
    /// Something harmless that no checkpoint needs: a set, bytes, a device, a NumPy scalar.
    Opaque,
}

/// A run of elements outside of the pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub(super) element: Element,
    /// The [`Node::Text`] that names it.
    pub(super) key: usize,
    /// In elements.
    pub(super) len: usize,
    /// The first element, for a legacy view into another storage.
    pub(super) first: usize,
}

/// A strided window into a storage; sizes, strides and offset are in elements.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) storage: Storage,
    /// The elements' type where it differs from the storage's.
    pub(super) element: Element,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// One pickle, read.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Value,
    /// The length of the pickle, in bytes.
    pub(super) len: usize,
}

impl Pickle {
    /// Reads the pickle that `bytes` starts with.
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut machine = Machine {
            path,
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Self { nodes: machine.nodes, root, len: machine.at })
    }

    pub(super) fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(id) => Some(&self.nodes[id]),
            _ => None,
        }
    }

    pub(super) fn text(&self, value: Value) -> Option<&str> {
        match self.node(value)? {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }
}

struct Machine<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    /// Heights of the stack at the open MARKs.
    marks: Vec<usize>,
    memo: HashMap<usize, Value>,
}

impl<'a> Machine<'a> {
    fn damaged(&self, reason: &str) -> Error {
        Error::Malformed {
            path: self.path.to_path_buf(),
            format: "pickle",
            reason: format!("{reason} before byte {}", self.at),
        }
    }

    fn refused(&self, module: &str, name: &str) -> Error {
        let class = format!("{module}.{name}").chars().take(200).collect();
        Error::Refused { path: self.path.to_path_buf(), class }
    }

    fn run(&mut self) -> Result<Value> {
        for _ in 0..MAX_OPS {
            if self.at > MAX_PICKLE {
                return Err(self.limit("the length of a pickle, in bytes,", MAX_PICKLE));
            }
            let opcode = self.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
        Err(self.limit("the number of opcodes in a pickle", MAX_OPS))
    }

    fn limit(&self, what: &'static str, limit: usize) -> Error {
        let limit = limit as u64;
        Error::Limit { path: self.path.to_path_buf(), what, found: limit + 1, limit }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => self.long(false)?,
            0x8b => self.long(true)?,
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => self.text(opcode)?,
            b')' => self.push(Node::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let height = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                let height = height.filter(|&h| self.marks.last().is_none_or(|&mark| mark <= h));
                let height = height.ok_or_else(|| self.damaged("stack underflow"))?;
                let items = self.stack.split_off(height);
                self.push(Node::Tuple(items));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(&items)?;
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.extend_dict(&items)?;
            }
            0x8f => self.push(Node::Opaque), // EMPTY_SET
            0x90 => {
                // ADDITEMS: a set's items are dropped.
                self.pop_mark()?;
                self.top()?;
            }
            0x91 => {
                self.pop_mark()?; // FROZENSET
                self.push(Node::Opaque);
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.class(module, name)?;
            }
            b'i' => {
                // INST names a class and calls it; no checkpoint uses it.
                let module = self.line()?;
                let name = self.line()?;
                return Err(self.refused(module, name));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.short_text(module)?, self.short_text(name)?);
                self.class(&module, &name)?;
            }
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            b'q' => {
                let slot = self.byte()?.into();
                self.remember(slot)?;
            }
            b'r' => {
                let slot = self.u32()?;
                self.remember(slot)?;
            }
            0x94 => self.remember(self.memo.len())?, // MEMOIZE
            b'h' => {
                let slot = self.byte()?.into();
                self.recall(slot)?;
            }
            b'j' => {
                let slot = self.u32()?;
                self.recall(slot)?;
            }
            _ => return Err(self.damaged(&format!("opcode {opcode:#04x} is not read here"))),
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.damaged(&format!("{count} more bytes needed")))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A line of text without its end.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(MAX_CLASS_NAME).position(|&b| b == b'\n');
        let end = end.ok_or_else(|| self.damaged("unended class name"))?;
        let line = &rest[..end];
        self.at += end + 1;
        std::str::from_utf8(line).map_err(|_| self.damaged("class name is not UTF-8"))
    }

    /// A copy of a text node that is short enough to be a class name.
    fn short_text(&self, value: Value) -> Result<String> {
        match value {
            Value::Node(id) => match &self.nodes[id] {
                Node::Text(text) if text.len() <= MAX_CLASS_NAME => Ok(text.clone()),
                _ => Err(self.damaged("class name expected")),
            },
            _ => Err(self.damaged("class name expected")),
        }
    }

    fn long(&mut self, wide: bool) -> Result<()> {
        let len = if wide { self.u32()? } else { self.byte()?.into() };
        let digits = self.take(len)?;
        if digits.len() > 8 {
            self.push(Node::BigInt(digits.to_vec()));
            return Ok(());
        }
        let negative = digits.last().is_some_and(|&b| b >= 0x80);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..digits.len()].copy_from_slice(digits);
        self.stack.push(Value::Int(i64::from_le_bytes(all)));
        Ok(())
    }

    /// Strings of every width; bytes are dropped.
    fn text(&mut self, opcode: u8) -> Result<()> {
        let len = match opcode {
            0x8c | b'U' | b'C' => self.byte()?.into(),
            b'X' | b'T' | b'B' => self.u32()?,
            _ => usize::try_from(u64::from_le_bytes(self.array()?)).unwrap_or(usize::MAX),
        };
        let bytes = self.take(len)?;
        let node = match opcode {
            b'B' | b'C' | 0x8e | 0x96 => Node::Opaque,
            // Names written by Python 2 are byte strings.
            _ => match std::str::from_utf8(bytes) {
                Ok(text) => Node::Text(text.to_owned()),
                Err(_) => Node::Opaque,
            },
        };
        self.push(node);
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(Value::Node(self.nodes.len()));
        self.nodes.push(node);
    }

    fn top(&self) -> Result<Value> {
        let open = self.marks.last().is_none_or(|&mark| mark < self.stack.len());
        let top = self.stack.last().copied().filter(|_| open);
        top.ok_or_else(|| self.damaged("stack underflow"))
    }

    fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no open mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn top_node(&mut self) -> Result<&mut Node> {
        match self.top()? {
            Value::Node(id) => Ok(&mut self.nodes[id]),
            _ => Err(self.damaged("container expected")),
        }
    }

    fn extend_list(&mut self, items: &[Value]) -> Result<()> {
        match self.top_node()? {
            Node::List(list) => list.extend_from_slice(items),
            Node::Opaque => {}
            _ => return Err(self.damaged("list expected")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Value]) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.damaged("key without a value"));
        }
        match self.top_node()? {
            Node::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            Node::Opaque => {}
            _ => return Err(self.damaged("dict expected")),
        }
        Ok(())
    }

    fn remember(&mut self, slot: usize) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Result<()> {
        let value = self.memo.get(&slot).copied();
        self.stack.push(value.ok_or_else(|| self.damaged("unknown memo slot"))?);
        Ok(())
    }

    fn class(&mut self, module: &str, name: &str) -> Result<()> {
        let class = allowed(module, name).ok_or_else(|| self.refused(module, name))?;
        self.push(Node::Class(class));
        Ok(())
    }

    /// REDUCE and NEWOBJ: a class from [`allowed`] applied to a tuple.
    fn call(&mut self) -> Result<()> {
        let (args, class) = (self.pop()?, self.pop()?);
        let class = match class {
            Value::Node(id) => match self.nodes[id] {
                Node::Class(class) => class,
                _ => return Err(self.damaged("call of something that is no class")),
            },
            _ => return Err(self.damaged("call of something that is no class")),
        };
        let first = self.tuple(args).and_then(|args| args.first().copied());
        match class {
            Class::RebuildTensor => {
                let tensor = self.tensor(args);
                let tensor = tensor.ok_or_else(|| self.damaged("bad arguments of a tensor"))?;
                self.push(Node::Tensor(tensor));
            }
            Class::RebuildParameter | Class::Same => {
                self.stack.push(first.ok_or_else(|| self.damaged("missing argument"))?);
            }
            Class::OrderedDict => self.ordered_dict(first),
            Class::Module => self.push(Node::Module(None)),
            Class::Opaque | Class::Element(_) => self.push(Node::Opaque),
            Class::Storage(_) => return Err(self.damaged("storage inside the pickle")),
        }
        Ok(())
    }

    fn tuple(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Node(id) => match &self.nodes[id] {
                Node::Tuple(items) | Node::List(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// Python 2 passes the pairs as a list of lists; Python 3 sets them later. The list is
    /// emptied, so that sharing it cannot multiply memory.
    fn ordered_dict(&mut self, pairs: Option<Value>) {
        let mut items = Vec::new();
        if let Some(Value::Node(id)) = pairs
            && let Node::List(list) = &mut self.nodes[id]
        {
            for pair in std::mem::take(list) {
                if let Some(&[key, value]) = self.tuple(pair) {
                    items.push((key, value));
                }
            }
        }
        self.push(Node::Dict(items));
    }

    /// Arguments: storage, offset, sizes, strides, `requires_grad`, hooks, dtype (of `_v3`), …
    fn tensor(&self, args: Value) -> Option<Tensor> {
        let args = self.tuple(args)?;
        let &[storage, offset, sizes, strides, ..] = args else { return None };
        let storage = match storage {
            Value::Node(id) => match self.nodes[id] {
                Node::Storage(storage) => storage,
                _ => return None,
            },
            _ => return None,
        };
        let element = match args.get(6) {
            Some(&Value::Node(id)) => match self.nodes[id] {
                Node::Class(Class::Element(element)) => element,
                _ => storage.element,
            },
            _ => storage.element,
        };
        let offset = count(offset)?;
        let (shape, strides) = (self.counts(sizes)?, self.counts(strides)?);
        Some(Tensor { storage, element, offset, shape, strides })
    }

    fn counts(&self, sizes: Value) -> Option<Vec<usize>> {
        let sizes = self.tuple(sizes)?;
        if sizes.len() > MAX_RANK {
            return None;
        }
        sizes.iter().map(|&size| count(size)).collect()
    }

    /// BUILD: a module's attributes are kept, any other object's state is dropped.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        if let Node::Module(attributes) = self.top_node()? {
            *attributes = Some(state);
        }
        Ok(())
    }

    /// `("storage", class, key, device, elements, view?)`: elements kept outside of the pickle.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = self.storage(id);
        let storage = storage.ok_or_else(|| self.damaged("bad storage reference"))?;
        self.push(Node::Storage(storage));
        Ok(())
    }

    fn storage(&self, id: Value) -> Option<Storage> {
        let &[kind, Value::Node(class), Value::Node(key), _, len, ref rest @ ..] =
            self.tuple(id)?
        else {
            return None;
        };
        let Node::Class(Class::Storage(element)) = self.nodes[class] else { return None };
        let Node::Text(_) = self.nodes[key] else { return None };
        match kind {
            Value::Node(kind) if matches!(&self.nodes[kind], Node::Text(t) if t == "storage") => {}
            _ => return None,
        }
        // A legacy view: (its own key, first element, elements).
        let view = rest.first().and_then(|&view| self.tuple(view));
        let first = match view {
            Some(&[_, first, _]) => count(first)?,
            _ => 0,
        };
        Some(Storage { element, key, len: count(len)?, first })
    }
}

fn count(value: Value) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(n).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
