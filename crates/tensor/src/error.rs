//! What can go wrong in an operation.

use crate::{DType, Shape};

/// An error of this crate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has another shape than the operation needs.
    #[error("{op}: expected {expected}, got {got}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What it needs, with named axes.
        expected: String,
        /// The operand's shape.
        got: Shape,
    },
    /// An operand has another type of number than the operation needs.
    #[error("{op}: expected {expected:?} values, got {got:?}; cast the tensor first")]
    DType {
        /// The operation.
        op: &'static str,
        /// What it needs.
        expected: DType,
        /// What it got.
        got: DType,
    },
    /// An index is not below its axis.
    #[error("{op}: index {index} is not below {len}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The index.
        index: usize,
        /// The length of the axis.
        len: usize,
    },
    /// A gradient was asked of a tensor that no trainable tensor leads to.
    #[error("backward: the tensor does not depend on any trainable tensor")]
    NotTracked,
}

impl Error {
    pub(crate) fn shape(op: &'static str, expected: impl Into<String>, got: &Shape) -> Self {
        Self::Shape { op, expected: expected.into(), got: got.clone() }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
