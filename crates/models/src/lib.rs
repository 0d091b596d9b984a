//! ocelli models.
