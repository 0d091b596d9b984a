//! ocelli testing.
