//! The gradient tape.
//!
//! A tracked tensor holds a node; a node holds the closure that turns the gradient of its value
//! into gradients of its parents, and with it exactly the state that this needs. [`Tensor::backward`]
//! runs the closures from the last node to the first, so a node's gradient is complete when its turn
//! comes. The first gradient that reaches a node is moved in, later ones are added in place; nodes
//! and gradients are freed as they are used up.

use crate::{Error, Result, Tensor};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

type Backward = Box<dyn FnOnce(Tensor, &mut Tape) + Send>;

pub(crate) struct Node {
    /// Grows with creation, so a parent's is smaller than its children's.
    id: u64,
    /// `None` for a leaf.
    backward: Option<Mutex<Option<Backward>>>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node {}", self.id)
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Node {
    pub(crate) fn leaf() -> Arc<Self> {
        Arc::new(Self { id: next_id(), backward: None })
    }

    pub(crate) fn op(backward: impl FnOnce(Tensor, &mut Tape) + Send + 'static) -> Arc<Self> {
        Arc::new(Self { id: next_id(), backward: Some(Mutex::new(Some(Box::new(backward)))) })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

thread_local! {
    static TRACKING: Cell<bool> = const { Cell::new(true) };
}

/// Whether operations on this thread remember how their results were computed.
pub fn tracking() -> bool {
    TRACKING.get()
}

struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        TRACKING.set(self.0);
    }
}

/// Runs `f` without remembering how results were computed.
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    let _restore = Restore(TRACKING.replace(false));
    f()
}

/// The way from an operation back to one parent; costs nothing if the parent needs no gradient.
#[derive(Clone, Debug)]
pub(crate) struct Edge(pub(crate) Option<Arc<Node>>);

impl Edge {
    pub(crate) fn is_tracked(&self) -> bool {
        self.0.is_some()
    }
}

/// Gradients under way.
pub(crate) struct Tape {
    pending: BTreeMap<u64, (Arc<Node>, Tensor)>,
    leaves: HashMap<u64, Tensor>,
}

impl Tape {
    /// Adds the gradient of a parent, which is computed only if the parent needs one.
    pub(crate) fn add(&mut self, parent: &Edge, grad: impl FnOnce() -> Tensor) {
        let Some(node) = &parent.0 else { return };
        let grad = grad();
        if node.backward.is_none() {
            Self::add_leaf(&mut self.leaves, node.id, grad);
            return;
        }
        match self.pending.get_mut(&node.id) {
            Some((_, sum)) => sum.accumulate(&grad),
            None => {
                self.pending.insert(node.id, (Arc::clone(node), grad));
            }
        }
    }

    fn add_leaf(leaves: &mut HashMap<u64, Tensor>, id: u64, grad: Tensor) {
        match leaves.get_mut(&id) {
            Some(sum) => sum.accumulate(&grad),
            None => {
                leaves.insert(id, grad);
            }
        }
    }

    fn run(&mut self) {
        while let Some((_, (node, grad))) = self.pending.pop_last() {
            let closure = node.backward.as_ref().and_then(|b| b.lock().ok()?.take());
            drop(node);
            if let Some(closure) = closure {
                closure(grad, self);
            }
        }
    }
}

/// Gradients of the leaves that a result depends on.
#[derive(Debug, Default)]
pub struct Gradients(HashMap<u64, Tensor>);

impl Gradients {
    /// The gradient of `leaf`, in its shape; `None` if the result does not depend on it.
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.node()?.id())
    }

    /// Takes the gradient of `leaf` out.
    pub fn take(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.node()?.id())
    }

    /// Multiplies all of them by `factor`.
    pub fn scale(&mut self, factor: f32) {
        for grad in self.0.values_mut() {
            ocelli_kernels::elementwise::scale_assign(grad.values_mut(), factor);
        }
    }

    /// Adds the gradients of another run.
    pub fn add(&mut self, other: Self) {
        for (id, grad) in other.0 {
            Tape::add_leaf(&mut self.0, id, grad);
        }
    }
}

impl Tensor {
    /// Gradients of this scalar with respect to every leaf it depends on. The tape is used up.
    ///
    /// # Errors
    /// If the tensor is not a scalar, or depends on no leaf.
    pub fn backward(&self) -> Result<Gradients> {
        if self.elements() != 1 {
            return Err(Error::shape("backward", "a scalar", self.shape()));
        }
        self.backward_from(&Tensor::full(1.0, self.shape()))
    }

    /// Gradients of `Σ self * grad`, for a gradient that comes from elsewhere.
    ///
    /// # Errors
    /// If the shapes differ, or the tensor depends on no leaf.
    pub fn backward_from(&self, grad: &Tensor) -> Result<Gradients> {
        if grad.shape() != self.shape() {
            return Err(Error::shape("backward", self.shape().to_string(), grad.shape()));
        }
        let edge = self.edge();
        if !edge.is_tracked() {
            return Err(Error::NotTracked);
        }
        let mut tape = Tape { pending: BTreeMap::new(), leaves: HashMap::new() };
        tape.add(&edge, || grad.detach());
        drop(edge);
        tape.run();
        Ok(Gradients(tape.leaves))
    }
}

/// Computes `f(x)` without keeping what is inside, and computes it a second time for the gradient
/// (Chen et al. 2016, arXiv:1604.06174). `f` must give the same result both times.
///
/// # Errors
/// What `f` returns.
pub fn checkpoint(
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    let y = no_grad(|| f(&x.detach()))?;
    if !tracking() {
        return Ok(y);
    }
    let (edge, input) = (x.edge(), x.detach());
    Ok(y.with_node(Node::op(move |grad, tape| {
        let x = input.leaf();
        // The first run succeeded on the same input.
        let Ok(y) = f(&x) else { return };
        let mut inner = Tape { pending: BTreeMap::new(), leaves: HashMap::new() };
        inner.add(&y.edge(), || grad);
        drop(y);
        inner.run();
        if let Some(grad) = x.node().and_then(|n| inner.leaves.remove(&n.id())) {
            tape.add(&edge, || grad);
        }
        for (id, grad) in inner.leaves {
            Tape::add_leaf(&mut tape.leaves, id, grad);
        }
    })))
}
