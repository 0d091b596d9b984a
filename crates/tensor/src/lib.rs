//! Storage, shapes and the gradient tape.
//!
//! A [`Tensor`] is a dense row-major array that may remember how it was computed. Operations are as
//! large as a layer; each knows its own gradient and keeps exactly what that needs. There is no
//! other engine below than `ocelli-kernels`.
//!
//! ```
//! use ocelli_tensor::Tensor;
//! let weight = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0], &[2, 2])?.leaf();
//! let x = Tensor::from_slice(&[1.0, -1.0], &[1, 2])?;
//! let loss = x.linear(&weight, None)?.sum()?;
//! let grads = loss.backward()?;
//! assert_eq!(grads.get(&weight).unwrap().values(), &[1.0, -1.0, 1.0, -1.0]);
//! # Ok::<(), ocelli_tensor::Error>(())
//! ```

mod error;
pub mod ops;
mod shape;
mod storage;
mod tape;
mod tensor;

pub use error::{Error, Result};
pub use ocelli_kernels::activation::Activation;
pub use ocelli_kernels::narrow::{Narrow, to_bytes};
pub use ocelli_kernels::quant::{BLOCK, BlockKind, Blocks, from_half as half_to_f32, quantise};
pub use ops::attention::{AttentionMask, Heads};
pub use ops::batch_norm::{BatchNormOptions, BatchStatistics};
pub use ops::cache::{KeyValues, Step};
pub use ops::conv::PicturePadding;
pub use ops::group_norm::GroupNormOptions;
pub use ops::linear::{LinearOptions, PackedWeight};
pub use ops::loss::Targets;
pub use ops::rotary::{Angles, Rotary};
pub use shape::Shape;
pub use storage::{DType, Mapped, Storage};
pub use tape::{Gradients, checkpoint, no_grad, tracking};
pub use tensor::Tensor;
