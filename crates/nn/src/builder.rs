//! Where the parameters of a new model come from.

use crate::checkpoint::{self, Checkpoint};
use crate::held::{Bytes, InBlocks, InMap, Joined, Made};
use crate::names::{Layout, Names, Place, halves_of_pairs, share};
use crate::{Init, Parameter, Parameters};
use ocelli_kernels::elementwise;
use ocelli_tensor::{BLOCK, BlockKind, Mapped, Narrow, Tensor, quantise};
use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::{Display, Write as _};
use std::rc::Rc;
use std::sync::Arc;

/// Makes the parameters of a model, at random or from a checkpoint.
///
/// Problems are collected rather than returned one by one; [`Builder::finish`] reports them all.
#[derive(Clone, Debug)]
pub struct Builder {
    path: String,
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    made: RefCell<Vec<Parameter>>,
    used: RefCell<HashSet<String>>,
    problems: RefCell<Problems>,
}

#[derive(Debug)]
enum Source {
    Zeros,
    Random(u64, Option<BlockKind>),
    Checkpoint(Arc<Checkpoint>, Vec<Names>, Vec<Axis>),
}

/// What an axis of a parameter is, for messages about one of another length.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What the names of parameters begin with that have such an axis.
    pub part: &'static str,
    /// Its length.
    pub length: usize,
    /// The length in words, such as `hidden=4096` or `patches=576+1`.
    pub symbol: String,
    /// The field of the configuration that set it.
    pub field: &'static str,
}

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Of a linear layer.
    Weight,
    /// Of a layer that takes patches of this height and width.
    Filters((usize, usize)),
    Buffer,
}

#[derive(Debug, Default)]
struct Problems {
    missing: Vec<String>,
    misshaped: Vec<String>,
    not_finite: Vec<String>,
    unreadable: Vec<checkpoint::Error>,
}

/// A checkpoint does not hold the model that its configuration describes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Tensors are missing, left over or of another shape; all of them are listed.
    #[error("{}", self.report())]
    Mismatch {
        /// The file.
        file: String,
        /// Names that the model needs and the file lacks.
        missing: Vec<String>,
        /// Names with the expected and the found shape.
        misshaped: Vec<String>,
        /// Names that no part of the model took.
        unused: Vec<String>,
        /// Names of tensors that hold NaN or infinity.
        not_finite: Vec<String>,
    },
    /// The file could not be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
}

/// Names of one kind that a message lists before it only counts.
const LISTED: usize = 20;

impl LoadError {
    fn report(&self) -> String {
        let Self::Mismatch { file, missing, misshaped, unused, not_finite } = self else {
            return String::new();
        };
        let mut text = format!("{file}: the checkpoint is not what its configuration describes");
        for (what, names) in [
            ("missing", missing),
            ("of another shape", misshaped),
            ("not used", unused),
            ("with values that are not finite", not_finite),
        ] {
            if names.is_empty() {
                continue;
            }
            let (count, listed) = (names.len(), names[..names.len().min(LISTED)].join(", "));
            let _ = write!(text, "\n  {count} {what}: {listed}"); // A string takes everything.
            if count > LISTED {
                let _ = write!(text, ", and {} more", count - LISTED);
            }
        }
        let broken = missing.is_empty() && misshaped.is_empty() && unused.is_empty();
        let told = |what: &str| misshaped.iter().any(|m| m.contains(what));
        text += if broken {
            "\n  the weights are damaged or come from a training that diverged: fetch the file again, \
             or take an earlier checkpoint"
        } else if told(EMPTIED) || told(PACKED) {
            "\n  save the full weights and try again"
        } else if missing.is_empty()
            && !misshaped.is_empty()
            && misshaped.iter().all(|m| m.contains(" for proj"))
        {
            "\n  the projector was trained between other models: take the one that belongs to this \
             language model and this tower"
        } else {
            "\n  check that the configuration belongs to this file"
        };
        text
    }
}

/// What is said of a tensor without values, and of one that is not what it seems.
const EMPTIED: &str = "emptied: saved by ZeRO stage 3 while its weights were split over machines";
const PACKED: &str = "packed: saved in blocks of 4 bits, two values a byte";

/// A tensor of another shape: its file, what was expected and by which field, what was found, and
/// why if the shape tells.
fn misfit(
    file: &Checkpoint,
    theirs: &str,
    ours: &str,
    want: &[usize],
    found: &[usize],
    axes: &[Axis],
) -> String {
    let mut fields: Vec<&str> = Vec::new();
    let mut said = |length: &usize| {
        let suits = |axis: &&Axis| axis.length == *length && ours.starts_with(axis.part);
        let Some(axis) = axes.iter().find(suits) else { return length.to_string() };
        if !fields.contains(&axis.field) {
            fields.push(axis.field);
        }
        axis.symbol.clone()
    };
    let expected = want.iter().map(&mut said).collect::<Vec<_>>().join(", ");
    let mut text = format!("{theirs} for {ours} expected [{expected}]");
    if !fields.is_empty() {
        let _ = write!(text, " by {}", fields.join(" and ")); // A string takes everything.
    }
    let _ = write!(text, ", found {found:?}");
    let values: usize = want.iter().product();
    if found == [0] {
        let _ = write!(text, " ({EMPTIED})");
    } else if matches!(*found, [n, 1] if n == values.div_ceil(2)) {
        let _ = write!(text, " ({PACKED})");
    }
    if let Some(path) = file.file_of(theirs).filter(|_| file.files() > 1) {
        let _ = write!(text, " in {}", path.display());
    }
    text
}

impl Builder {
    /// Parameters that are all 0 and take no memory until they are read: to count those of a model.
    pub fn zeros() -> Self {
        Self::new(Source::Zeros)
    }

    /// New parameters; the same seed gives the same values.
    pub fn random(seed: u64) -> Self {
        Self::new(Source::Random(seed, None))
    }

    /// The same with the weights of linear layers in blocks, for timing.
    pub fn random_in_blocks(seed: u64, kind: BlockKind) -> Self {
        Self::new(Source::Random(seed, Some(kind)))
    }

    /// Parameters of a checkpoint, through the name maps of its family; the first map that knows a
    /// name decides.
    pub fn load(checkpoint: Arc<Checkpoint>, names: Vec<Names>) -> Self {
        Self::new(Source::Checkpoint(checkpoint, names, Vec::new()))
    }

    /// The same, where messages about shapes say what these axes are; the first that suits counts.
    pub fn load_with(checkpoint: Arc<Checkpoint>, names: Vec<Names>, axes: Vec<Axis>) -> Self {
        Self::new(Source::Checkpoint(checkpoint, names, axes))
    }

    fn new(source: Source) -> Self {
        let shared = Shared {
            source,
            made: RefCell::default(),
            used: RefCell::default(),
            problems: RefCell::default(),
        };
        Self { path: String::new(), shared: Rc::new(shared) }
    }

    /// The builder of a part: its names follow `part` and a dot.
    #[must_use]
    pub fn at(&self, part: impl Display) -> Self {
        Self { path: format!("{}{part}.", self.path), shared: Rc::clone(&self.shared) }
    }

    /// A parameter; drawn by `init` if the model is new.
    pub fn parameter(&self, name: &str, shape: &[usize], init: Init) -> Parameter {
        self.make(name, shape, init, Kind::Plain)
    }

    /// The weight `[outputs, inputs kernel_h kernel_w]` of a layer that takes patches of pictures, in
    /// files `[outputs, inputs, kernel_h, kernel_w]`.
    pub fn filters(
        &self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        kernel: (usize, usize),
        init: Init,
    ) -> Parameter {
        let shape = [outputs, inputs * kernel.0 * kernel.1];
        self.make(name, &shape, init, Kind::Filters(kernel))
    }

    /// The weight `[outputs, inputs]` of a linear layer; in blocks of few bits if the checkpoint is
    /// [`Checkpoint::quantised`] and a row has whole ones.
    pub fn weight(&self, name: &str, shape: &[usize], init: Init) -> Parameter {
        let parameter = self.make(name, shape, init, Kind::Weight);
        let kind = match &self.shared.source {
            Source::Checkpoint(file, ..) => file.quantised_to().filter(|_| file.is_read()),
            Source::Random(_, kind) => *kind,
            Source::Zeros => None,
        };
        if let Some(kind) = kind
            && shape.last().is_some_and(|cols| cols.is_multiple_of(BLOCK))
        {
            let value = parameter.tensor();
            if value.shape()[..] == *shape && value.block_kind() != Some(kind) {
                let bytes = Bytes::Own(quantise(kind, value.values()));
                if let Some(blocks) = InBlocks::tensor(kind, bytes, shape) {
                    parameter.replace(&blocks);
                }
            }
        }
        parameter
    }

    /// A table that no optimiser touches; drawn by `init` if the model is new.
    pub fn fixed(&self, name: &str, shape: &[usize], init: Init) -> Parameter {
        self.make(name, shape, init, Kind::Buffer)
    }

    /// A running statistic, which no optimiser touches.
    pub fn buffer(&self, name: &str, shape: &[usize], value: f32) -> Parameter {
        self.make(name, shape, Init::Constant(value), Kind::Buffer)
    }

    fn make(&self, name: &str, shape: &[usize], init: Init, kind: Kind) -> Parameter {
        let name = format!("{}{name}", self.path);
        let value = match &self.shared.source {
            Source::Zeros => Made::zeros(shape),
            Source::Random(seed, _) => {
                let (seed, own_name, of) = (*seed, name.clone(), shape.to_vec());
                Made::tensor(shape, move || init.draw(seed, &own_name, &of), None)
            }
            Source::Checkpoint(checkpoint, names, axes) => {
                self.find(checkpoint, names, axes, &name, shape, kind)
            }
        };
        // A stand-in keeps the list of problems growing; it never takes the memory that a wrong
        // configuration asks for.
        let stand_in = || Tensor::zeros(&vec![0; shape.len()]);
        let kernel = if let Kind::Filters(kernel) = kind { Some(kernel) } else { None };
        let is_buffer = kind == Kind::Buffer;
        let is_linear = matches!(kind, Kind::Weight | Kind::Filters(_));
        let value = value.unwrap_or_else(stand_in);
        let planned = self.planned(&name, shape, kind);
        let is_in_bytes = is_linear && self.is_in_bytes(&name);
        let parameter = Parameter::new(name, value, is_buffer, is_linear, kernel, planned);
        if is_in_bytes {
            parameter.set_narrow(Narrow::Int8);
        }
        self.shared.made.borrow_mut().push(parameter.clone());
        parameter
    }

    /// Whether the checkpoint holds the rows of a weight as bytes.
    fn is_in_bytes(&self, name: &str) -> bool {
        let Source::Checkpoint(file, names, _) = &self.shared.source else { return false };
        let stored = Names::stored_rows(names, name);
        !stored.is_empty() && stored.iter().all(|theirs| file.is_in_bytes(theirs))
    }

    /// The blocks that the values will be in once they are read, if they are not read now.
    fn planned(&self, name: &str, shape: &[usize], kind: Kind) -> Option<BlockKind> {
        let Source::Checkpoint(file, names, _) = &self.shared.source else { return None };
        if file.is_read() || !shape.last()?.is_multiple_of(BLOCK) {
            return None;
        }
        if let Some(blocks) = file.quantised_to().filter(|_| kind == Kind::Weight) {
            return Some(blocks);
        }
        let place = names.iter().find_map(|n| n.place(name))?;
        let [theirs] = &place.theirs[..] else { return None };
        file.block_kind(theirs).filter(|_| place.layout == Layout::Same)
    }

    fn find(
        &self,
        file: &Arc<Checkpoint>,
        names: &[Names],
        axes: &[Axis],
        name: &str,
        shape: &[usize],
        kind: Kind,
    ) -> Option<Tensor> {
        let mut problems = self.shared.problems.borrow_mut();
        let Some(place) = names.iter().find_map(|n| n.place(name)) else {
            problems.missing.push(format!("{name} (the family has no such tensor)"));
            return None;
        };
        let mut whole = true;
        for theirs in place.stored() {
            let Some((_, found)) = file.info(theirs) else {
                problems.missing.push(theirs.clone());
                whole = false;
                continue;
            };
            self.shared.used.borrow_mut().insert(theirs.clone());
            let want = share(shape, place.theirs.len());
            if !want.as_ref().is_some_and(|want| place.fits(found, want)) {
                let want = want.unwrap_or_else(|| shape.to_vec());
                problems.misshaped.push(misfit(file, theirs, name, &want, found, axes));
                whole = false;
            }
        }
        if !whole {
            return None;
        }
        if !file.is_read() {
            return Made::zeros(shape);
        }
        let blocks = file.quantised_to().filter(|_| kind == Kind::Weight);
        if let Some(Ok(Some((tensor, is_finite)))) =
            blocks.map(|kind| Self::read_blocks(file, &place, shape, kind))
        {
            if !is_finite {
                problems.not_finite.push(place.theirs.join(" + "));
            }
            return Some(tensor);
        }
        match Self::read(file, &place, shape) {
            Ok(Some((mut tensor, is_finite))) => {
                if !is_finite {
                    problems.not_finite.push(place.theirs.join(" + "));
                }
                // All of it was looked at; what comes from the map comes again when it is needed.
                tensor.rest();
                Some(tensor)
            }
            Ok(None) => None,
            Err(e) => {
                problems.unreadable.push(e);
                None
            }
        }
    }

    /// The tensor in blocks, and whether all of its values are finite, if the file holds its rows as
    /// they are.
    fn read_blocks(
        file: &Arc<Checkpoint>,
        place: &Place,
        shape: &[usize],
        kind: BlockKind,
    ) -> checkpoint::Result<Option<(Tensor, bool)>> {
        if place.layout != Layout::Same || place.stored().count() < place.theirs.len() {
            return Ok(None);
        }
        let Some((bytes, is_finite)) = Self::gather_blocks(file, &place.theirs, kind)? else {
            return Ok(None);
        };
        let (file, theirs) = (Arc::clone(file), place.theirs.clone());
        // A map that was read once reads again.
        let again = move || {
            let found = Self::gather_blocks(&file, &theirs, kind).ok().flatten();
            found.map(|(bytes, _)| bytes).unwrap_or_default()
        };
        let tensor = InBlocks::tensor(kind, Bytes::made(bytes, again), shape);
        Ok(tensor.map(|tensor| (tensor, is_finite)))
    }

    /// The blocks of tensors one behind the other.
    fn gather_blocks(
        file: &Checkpoint,
        theirs: &[String],
        kind: BlockKind,
    ) -> checkpoint::Result<Option<(Vec<u8>, bool)>> {
        let (mut bytes, mut is_finite) = (Vec::new(), true);
        for theirs in theirs {
            let Some((part, finite)) = file.read_quantised(theirs, kind)? else {
                return Ok(None);
            };
            is_finite &= finite;
            if bytes.is_empty() { bytes = part } else { bytes.extend(part) }
        }
        Ok(Some((bytes, is_finite)))
    }

    /// The tensor, and whether all of its values are finite.
    fn read(
        file: &Arc<Checkpoint>,
        place: &Place,
        shape: &[usize],
    ) -> checkpoint::Result<Option<(Tensor, bool)>> {
        if place.layout == Layout::Same
            && let Some(mut parts) = place
                .theirs
                .iter()
                .map(|theirs| file.mapped_f32(theirs))
                .collect::<Option<Vec<_>>>()
        {
            let joined = Joined::new(parts.clone());
            let is_finite = joined.is_finite();
            let mapped: Arc<dyn Mapped> = match (parts.pop(), parts.is_empty()) {
                (Some(part), true) => Arc::new(InMap(part)),
                _ => Arc::new(joined),
            };
            return Ok(Tensor::from_mapped(mapped, shape).ok().map(|tensor| (tensor, is_finite)));
        }
        if let [theirs] = &place.theirs[..]
            && let Some((kind, bytes)) = file.blocks(theirs)
        {
            let row = shape.last().copied().unwrap_or(0) / BLOCK * kind.bytes();
            let bytes = match place.layout {
                Layout::Same => Some(Bytes::Mapped(bytes)),
                Layout::Pairs(head_dim) => halves_of_pairs(&bytes, row, head_dim).map(Bytes::Own),
                _ => None,
            };
            if let Some(tensor) = bytes.and_then(|bytes| InBlocks::tensor(kind, bytes, shape)) {
                let is_finite = tensor.blocks().is_some_and(|blocks| blocks.is_finite());
                return Ok(Some((tensor, is_finite)));
            }
        }
        let Some(values) = Self::gather(file, place, shape)? else { return Ok(None) };
        let is_finite = elementwise::is_finite(&values);
        let tensor = if place.stored().all(|theirs| file.is_mapped(theirs)) {
            let (file, place, of) = (Arc::clone(file), place.clone(), shape.to_vec());
            let again = move || {
                // A map that was read once reads again.
                let values = Self::gather(&file, &place, &of).ok().flatten();
                values.unwrap_or_else(|| vec![f32::NAN; of.iter().product()])
            };
            Made::tensor(shape, again, Some(values))
        } else {
            Tensor::from_slice(&values, shape).ok()
        };
        Ok(tensor.map(|tensor| (tensor, is_finite)))
    }

    /// The values of a parameter, put together from the tensors of a family.
    fn gather(
        file: &Checkpoint,
        place: &Place,
        shape: &[usize],
    ) -> checkpoint::Result<Option<Vec<f32>>> {
        let mut parts = Vec::with_capacity(place.theirs.len());
        for theirs in &place.theirs {
            if theirs.is_empty() {
                let share = share(shape, place.theirs.len()).unwrap_or_default();
                let zeros = vec![0.0; share.iter().product()];
                parts.push((share, zeros));
                continue;
            }
            let found = file.info(theirs).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
            parts.push((found, file.read_f32(theirs)?));
        }
        Ok(place.to_ours(parts, shape))
    }

    /// Whether the checkpoint holds the parameter `name` of this part; true for new models.
    pub fn has(&self, name: &str) -> bool {
        match &self.shared.source {
            Source::Zeros | Source::Random(..) => true,
            Source::Checkpoint(file, names, _) => {
                let name = format!("{}{name}", self.path);
                names
                    .iter()
                    .find_map(|n| n.place(&name))
                    .is_some_and(|p| p.stored().all(|t| file.info(t).is_some()))
            }
        }
    }

    /// All parameters made, if every one was found and nothing was left over.
    ///
    /// # Errors
    /// [`LoadError`], which lists everything that does not fit.
    pub fn finish(self) -> Result<Parameters, LoadError> {
        let mut problems = self.shared.problems.take();
        if !problems.unreadable.is_empty() {
            return Err(problems.unreadable.swap_remove(0).into());
        }
        if let Source::Checkpoint(file, names, _) = &self.shared.source {
            let used = self.shared.used.borrow();
            let unused: Vec<String> = file
                .names()
                .filter(|n| !used.contains(*n) && !names.iter().any(|m| m.is_ignored(n)))
                .map(str::to_owned)
                .collect();
            let Problems { missing, misshaped, not_finite, .. } = problems;
            if !(missing.is_empty()
                && misshaped.is_empty()
                && unused.is_empty()
                && not_finite.is_empty())
            {
                let of = file.names().next().and_then(|n| file.file_of(n));
                let file = of.map_or_else(|| "checkpoint".to_owned(), |p| p.display().to_string());
                return Err(LoadError::Mismatch { file, missing, misshaped, unused, not_finite });
            }
        }
        Ok(Parameters::new(self.shared.made.take()))
    }
}

impl Parameters {
    /// These and those of another part of the model.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self::new(self.iter().chain(other.iter()).cloned().collect())
    }

    /// The tensors of a checkpoint family from values of ours: name, shape, values. `values` gives
    /// the value (or gradient) of a parameter, or `None` to leave it out.
    pub fn export(
        &self,
        names: &[Names],
        mut values: impl FnMut(&Parameter) -> Option<Tensor>,
    ) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut out: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for p in self.iter() {
            let (Some(place), Some(tensor)) =
                (names.iter().find_map(|n| n.place(p.name())), values(p))
            else {
                continue;
            };
            let parts = place.to_theirs(&p.stored_shape(), tensor.values());
            if let Layout::Part(part, _) = place.layout
                && part > 0
            {
                let first = out.iter_mut().find(|(name, ..)| place.theirs.contains(name));
                let more = parts.into_iter().next();
                if let (Some((_, shape, values)), Some((added, more))) = (first, more) {
                    shape[0] += added[0];
                    values.extend(more);
                }
                continue;
            }
            let stored = place.theirs.into_iter().zip(parts).filter(|(name, _)| !name.is_empty());
            out.extend(stored.map(|(name, (shape, v))| (name, shape, v)));
        }
        out
    }
}
