//! Parameters of a model.

use ocelli_tensor::{BLOCK, BlockKind, Narrow, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A named tensor of a model that training may change; copies are the same parameter.
#[derive(Clone, Debug)]
pub struct Parameter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    is_buffer: bool,
    is_linear: bool,
    /// The blocks that values will be in that are not read yet.
    planned: Option<BlockKind>,
    /// Height and width of the filters that the rows of a matrix are.
    kernel: Option<(usize, usize)>,
    value: RwLock<Tensor>,
    /// Changes with the values, so that packed copies know when they are old.
    version: AtomicU64,
    /// What it is multiplied in, if not in f32.
    narrow: RwLock<Option<Narrow>>,
}

impl Parameter {
    pub(crate) fn new(
        name: String,
        value: Tensor,
        is_buffer: bool,
        is_linear: bool,
        kernel: Option<(usize, usize)>,
        planned: Option<BlockKind>,
    ) -> Self {
        let value = if is_buffer { value } else { value.leaf() };
        let (value, version, narrow) = (RwLock::new(value), AtomicU64::new(0), RwLock::default());
        Self(Arc::new(Inner {
            name,
            is_buffer,
            is_linear,
            planned,
            kernel,
            value,
            version,
            narrow,
        }))
    }

    /// The full name, such as `vision.blocks.3.norm1.weight`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether this is a running statistic rather than something that learns.
    pub fn is_buffer(&self) -> bool {
        self.0.is_buffer
    }

    /// The shape in files: a matrix whose rows are filters is `[outputs, inputs, height, width]`
    /// there, as every family writes it.
    pub fn stored_shape(&self) -> Vec<usize> {
        let shape = self.shape();
        match (self.0.kernel, &shape[..]) {
            (Some((height, width)), &[outputs, inputs]) if height * width > 0 => {
                vec![outputs, inputs / (height * width), height, width]
            }
            _ => shape,
        }
    }

    /// The value; a leaf of the tape while the parameter is trainable.
    pub fn tensor(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> Vec<usize> {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).shape().to_vec()
    }

    /// The number of values.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether it is the weight of a linear layer, of which the kernels keep a copy in their order.
    pub fn is_linear(&self) -> bool {
        self.0.is_linear
    }

    /// The blocks that the values are in, or will be once they are read.
    fn blocks(&self) -> Option<BlockKind> {
        self.0.planned.or_else(|| self.tensor().block_kind())
    }

    /// Memory that the values take once they are read, in bytes.
    pub fn bytes(&self) -> u64 {
        let elements = self.elements() as u64;
        match self.blocks() {
            Some(kind) => elements / BLOCK as u64 * kind.bytes() as u64,
            None => elements * size_of::<f32>() as u64,
        }
    }

    /// Memory that the kernels' copy takes, in bytes; 0 if they keep none.
    pub fn packed_bytes(&self) -> u64 {
        if !self.is_linear() {
            return 0;
        }
        let elements = self.elements() as u64;
        match self.narrow().filter(|_| self.blocks().is_none()) {
            Some(Narrow::Bf16) => 2 * elements,
            Some(Narrow::Int8) => elements,
            None => self.bytes(),
        }
    }

    /// Whether gradients are computed for it.
    pub fn is_trainable(&self) -> bool {
        self.tensor().is_tracked()
    }

    /// Freezes or unfreezes the parameter. A buffer stays frozen.
    pub fn set_trainable(&self, trainable: bool) {
        let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        *value = if trainable && !self.0.is_buffer { value.leaf() } else { value.detach() };
    }

    /// Lets `change` write the values in place.
    pub fn update(&self, change: impl FnOnce(&mut [f32])) {
        change(self.0.value.write().unwrap_or_else(PoisonError::into_inner).values_mut());
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// Takes another value, of another shape if need be (a resampled position table).
    pub fn replace(&self, tensor: &Tensor) {
        let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        *value = if value.is_tracked() { tensor.leaf() } else { tensor.detach() };
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// Gives back the memory of the values until they are asked for again, where that is possible: a
    /// layer has packed them.
    pub(crate) fn rest(&self) {
        self.0.value.write().unwrap_or_else(PoisonError::into_inner).rest();
    }

    /// What linear layers multiply it in outside of training, if not in f32.
    pub(crate) fn narrow(&self) -> Option<Narrow> {
        *self.0.narrow.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on linear layers multiply it so outside of training.
    pub(crate) fn set_narrow(&self, kind: Narrow) {
        *self.0.narrow.write().unwrap_or_else(PoisonError::into_inner) = Some(kind);
        self.0.version.fetch_add(1, Ordering::Release);
    }

    /// Grows with every change of the values.
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }
}

/// All parameters of a model, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    pub(crate) fn new(list: Vec<Parameter>) -> Self {
        Self(list)
    }

    /// From now on linear layers multiply in bf16, or in bytes except where gradients are taken, and
    /// attention between their products does where that is faster. Weights in blocks stay what they are.
    pub fn narrow(&self, kind: Narrow) {
        self.iter().for_each(|parameter| parameter.set_narrow(kind));
    }

    /// Each parameter and buffer.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter()
    }

    /// The parameters that gradients are computed for.
    pub fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter().filter(|p| p.is_trainable())
    }

    /// A parameter by its full name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|p| p.name() == name)
    }

    /// The number of values that can learn, buffers left out.
    pub fn elements(&self) -> usize {
        self.0.iter().filter(|p| !p.is_buffer()).map(Parameter::elements).sum()
    }
}
