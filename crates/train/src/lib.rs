//! ocelli train.
