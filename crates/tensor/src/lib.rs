//! ocelli tensor.
