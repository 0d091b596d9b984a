//! Metrics, one file each: accuracy, zero-shot classification, retrieval.
//!
//! All of them are pure functions over scores or features; which model made these is the caller's
//! business. Ranks count ties against nobody: of equal scores the earlier one comes first.

mod accuracy;
mod error;
mod retrieval;
mod zero_shot;

pub use accuracy::{Accuracy, rank_of};
pub use error::{Error, Result};
pub use retrieval::{Recall, recall_at};
pub use zero_shot::{ZeroShot, classifier};
