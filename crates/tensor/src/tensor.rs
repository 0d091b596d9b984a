//! The tensor.

use crate::storage::{from_bf16, to_bf16};
use crate::tape::{Edge, Node, Tape, tracking};
use crate::{BlockKind, DType, Error, Mapped, Result, Shape, Storage};
use ocelli_kernels::quant::Blocks;
use ocelli_kernels::{Buffer, elementwise};
use std::sync::Arc;

/// A dense row-major array; copies share their values.
#[derive(Clone)]
pub struct Tensor {
    storage: Storage,
    shape: Shape,
    node: Option<Arc<Node>>,
}

impl Tensor {
    /// From values in row-major order.
    ///
    /// # Errors
    /// If the number of values does not fit the shape.
    pub fn from_slice(values: &[f32], shape: &[usize]) -> Result<Self> {
        let shape = Shape::from(shape);
        if shape.elements() != values.len() {
            return Err(Error::shape("from_slice", format!("{} values", values.len()), &shape));
        }
        Ok(Self::new(Buffer::from_slice(values), shape))
    }

    /// From a buffer that a kernel filled.
    ///
    /// # Panics
    /// If the number of values does not fit the shape.
    pub(crate) fn new(values: Buffer<f32>, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(values.len(), shape.elements(), "a kernel's output has the wrong size");
        Self { storage: Storage::F32(Arc::new(values)), shape, node: None }
    }

    /// From values that live elsewhere.
    ///
    /// # Errors
    /// If the number of values does not fit the shape.
    pub fn from_mapped(values: Arc<dyn Mapped>, shape: &[usize]) -> Result<Self> {
        let shape = Shape::from(shape);
        if shape.elements() != values.len() {
            let n = values.len();
            return Err(Error::shape("from_mapped", format!("{n} values"), &shape));
        }
        Ok(Self { storage: Storage::Mapped(values), shape, node: None })
    }

    /// All zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        let shape = Shape::from(shape);
        Self::new(Buffer::zeroed(shape.elements()), shape)
    }

    /// All `value`.
    pub fn full(value: f32, shape: &[usize]) -> Self {
        let mut t = Self::zeros(shape);
        t.values_mut().fill(value);
        t
    }

    /// A scalar.
    pub fn scalar(value: f32) -> Self {
        Self::full(value, &[])
    }

    /// The lengths of the axes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The number of values.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// The type of number.
    pub fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// The values in row-major order.
    ///
    /// # Panics
    /// If they are not f32; see [`Tensor::cast`].
    pub fn values(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(b) => b,
            Storage::Mapped(m) => m.values(),
            Storage::Bf16(_) => panic!("the values are bf16; cast the tensor to f32 first"),
        }
    }

    /// The values in blocks of few bits, if they are held so.
    pub fn blocks(&self) -> Option<Blocks<'_>> {
        match &self.storage {
            Storage::Mapped(m) => m.blocks(),
            _ => None,
        }
    }

    /// Gives back the memory of values that can be had again, as those of a file can.
    pub fn rest(&mut self) {
        if let Storage::Mapped(values) = &self.storage
            && let Some(rested) = values.rested()
        {
            self.storage = Storage::Mapped(rested);
        }
    }

    /// The kind of blocks that the values are held in, if they are.
    pub fn block_kind(&self) -> Option<BlockKind> {
        match &self.storage {
            Storage::Mapped(m) => m.block_kind(),
            _ => None,
        }
    }

    /// The values for writing; copied first if another tensor shares them.
    pub fn values_mut(&mut self) -> &mut [f32] {
        if !matches!(&self.storage, Storage::F32(b) if Arc::strong_count(b) == 1) {
            self.storage = Storage::F32(Arc::new(Buffer::from_slice(self.values())));
        }
        let Storage::F32(b) = &mut self.storage else { unreachable!("just made f32") };
        Arc::get_mut(b).expect("no other tensor shares the values")
    }

    /// Whether no value is infinite or not a number.
    pub fn is_finite(&self) -> bool {
        elementwise::is_finite(self.values())
    }

    /// The only value.
    ///
    /// # Errors
    /// If there is more than one.
    pub fn item(&self) -> Result<f32> {
        match self.values() {
            [value] => Ok(*value),
            _ => Err(Error::shape("item", "one value", &self.shape)),
        }
    }

    /// The same values as another type of number. Not tracked.
    #[must_use]
    pub fn cast(&self, dtype: DType) -> Self {
        let storage = match (&self.storage, dtype) {
            (Storage::Bf16(b), DType::F32) => {
                let mut out = Buffer::uninit(b.len());
                out.iter_mut().zip(b.iter()).for_each(|(o, v)| *o = from_bf16(*v));
                Storage::F32(Arc::new(out))
            }
            (Storage::F32(_) | Storage::Mapped(_), DType::Bf16) => {
                let mut out = Buffer::zeroed(self.elements());
                out.iter_mut().zip(self.values()).for_each(|(o, v)| *o = to_bf16(*v));
                Storage::Bf16(Arc::new(out))
            }
            (same, _) => same.clone(),
        };
        Self { storage, shape: self.shape.clone(), node: None }
    }

    /// The same values as a trainable tensor: [`Tensor::backward`] gives its gradient.
    #[must_use]
    pub fn leaf(&self) -> Self {
        Self { node: Some(Node::leaf()), ..self.clone() }
    }

    /// The same values, not tracked.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self { node: None, ..self.clone() }
    }

    /// Whether a gradient would reach a leaf from here.
    pub fn is_tracked(&self) -> bool {
        tracking() && self.node.is_some()
    }

    /// The same values in another shape.
    ///
    /// # Errors
    /// If the number of values differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        let shape = Shape::from(shape);
        if shape.elements() != self.elements() {
            let n = self.elements();
            return Err(Error::shape("reshape", format!("a shape of {n} values"), &shape));
        }
        let out = Self { storage: self.storage.clone(), shape, node: None };
        let (edge, from) = (self.edge(), self.shape.clone());
        Ok(out.tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || Self { shape: from, ..grad });
        }))
    }

    /// Moves on with values computed elsewhere in place of these: the values of `new`, the tape of
    /// `self`.
    pub(crate) fn with_node(self, node: Arc<Node>) -> Self {
        Self { node: Some(node), ..self }
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    pub(crate) fn edge(&self) -> Edge {
        Edge(if tracking() { self.node.clone() } else { None })
    }

    /// Attaches `backward` if one of the parents is tracked; else it is dropped with all it holds.
    pub(crate) fn tracked(
        self,
        parents: &[&Edge],
        backward: impl FnOnce(Tensor, &mut Tape) + Send + 'static,
    ) -> Self {
        if parents.iter().any(|p| p.is_tracked()) {
            self.with_node(Node::op(backward))
        } else {
            self
        }
    }

    /// Adds a gradient in place.
    pub(crate) fn accumulate(&mut self, grad: &Self) {
        elementwise::add_assign(self.values_mut(), grad.values());
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor {:?} {:?}", self.dtype(), self.shape)
    }
}
