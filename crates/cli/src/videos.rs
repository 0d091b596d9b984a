//! Pictures that move.

use crate::failure::Failure;
use crate::session::Session;
use clap::Args;
use ocelli_models::Model;

/// Frames of a video that are looked at, at most; the paper shows 30.
const MOST: i64 = 64;

/// Whether pictures may be videos.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct VideoArgs {
    /// Look at videos: an animated GIF or WebP or a folder of frames by name, given as a picture, is
    /// seen as N frames from its first to its last; for a Flamingo
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST))]
    pub(crate) frames: Option<u16>,
}

impl VideoArgs {
    /// Pictures that the model's tower sees of one that was given.
    pub(crate) fn most(self) -> usize {
        self.frames.map_or(1, usize::from)
    }

    /// That the model looks at videos if it is to.
    pub(crate) fn check(self, session: &Session) -> Result<(), Failure> {
        match (self.frames, &session.opened.model) {
            (None, _) | (_, Model::Flamingo(_)) => Ok(()),
            _ => Err(session.unsuitable("--frames", "a model that looks at videos, a Flamingo")),
        }
    }
}
