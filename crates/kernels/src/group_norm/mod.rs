//! group_norm
