//! What lies between the tower and the language model of a Flamingo, in a file of its own.

use super::gated_xattn::GatedCrossAttention;
use super::perceiver::PerceiverResampler;

/// The parts of a Flamingo that are neither tower nor language model; a file may have one alone.
#[derive(Debug)]
pub struct FlamingoParts {
    /// Features to latents.
    pub resampler: Option<PerceiverResampler>,
    /// A layer of the language model that looks at latents.
    pub gated: Option<GatedCrossAttention>,
}
