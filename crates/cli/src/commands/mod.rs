//! One file per command.

pub(crate) mod bench;
pub(crate) mod caption;
pub(crate) mod classify;
pub(crate) mod completions;
pub(crate) mod compose;
pub(crate) mod doctor;
pub(crate) mod embed;
pub(crate) mod generate;
pub(crate) mod match_texts;
pub(crate) mod model;
pub(crate) mod preprocess;
pub(crate) mod run;
pub(crate) mod tokenize;
pub(crate) mod train;
pub(crate) mod verify;
pub(crate) mod viz;
pub(crate) mod vqa;
