//! Training: recipes, objectives, optimisers, schedules, checkpoints and the loop.
//!
//! [`config::TrainConfig::load`] reads a recipe, [`plan`] says what it will do, [`run`] does it: one
//! loop in `run.rs` for every stage. A run folder holds everything about a run; one that was killed
//! goes on from its last checkpoint and gives the same losses as if nothing had happened.

mod checkpoint;
pub mod config;
mod error;
mod evaluation;
mod export;
mod identity;
mod learner;
pub mod objective;
mod optimiser;
mod parts;
mod plan;
mod plot;
mod progress;
mod record;
mod run;
mod schedule;
mod setup;
mod step;
mod tensorboard;
mod texts;
mod towers;

pub use config::TrainConfig;
pub use error::{Error, Result};
pub use learner::Learner;
pub use optimiser::{Optimiser, Rule};
pub use parts::{Part, PartTable, rules};
pub use plan::{DataSize, Plan, plan};
pub use progress::Show;
pub use run::{RunOptions, Summary, run};
pub use schedule::Schedule;
pub use tensorboard::EventWriter;
pub use texts::{Ids, TextEncoder};
