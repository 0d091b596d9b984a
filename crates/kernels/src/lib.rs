//! ocelli kernels.
