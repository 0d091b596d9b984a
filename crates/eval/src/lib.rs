//! ocelli eval.
