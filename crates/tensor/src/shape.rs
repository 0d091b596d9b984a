//! Shapes.

use std::ops::Deref;

/// The lengths of a tensor's axes, outermost first.
#[derive(Clone, PartialEq, Eq)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The number of values.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// The last axis, 1 for a scalar.
    pub fn last_axis(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// The product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.0.iter().rev().skip(1).product()
    }

    /// This shape with another last axis.
    #[must_use]
    pub fn with_last(&self, last: usize) -> Self {
        let mut axes = self.0.clone();
        if let Some(axis) = axes.last_mut() {
            *axis = last;
        }
        Self(axes)
    }
}

impl From<&[usize]> for Shape {
    fn from(axes: &[usize]) -> Self {
        Self(axes.to_vec())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(axes: [usize; N]) -> Self {
        Self(axes.to_vec())
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
