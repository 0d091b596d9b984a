//! Rotary position embedding.

use crate::{Error, Result, Tensor};
use ocelli_kernels::rotary::{Rotation, rotate};
use std::sync::Arc;

/// A rotary position embedding (Su et al. 2021, arXiv:2104.09864).
#[derive(Clone, Debug)]
pub struct Rotary {
    /// How far each pair of a head turns from one position to the next.
    frequencies: Vec<f32>,
}

/// The angles of some tokens, as cosines and sines; copies share them.
#[derive(Clone, Debug)]
pub struct Angles(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Pair j of a head of `2 * half` values turns by `theta^(-j / half) / factor` per position. A
    /// `factor` above 1 spreads the positions of a short training over a longer context (Chen et al.
    /// 2023, arXiv:2306.15595).
    pub fn new(half: usize, theta: f64, factor: f32) -> Self {
        // Rounded to f32 where the references round.
        let frequency = |j: usize| {
            let exponent = (2 * j) as f32 / (2 * half) as f32;
            1.0 / (theta.powf(f64::from(exponent)) as f32) / factor
        };
        Self { frequencies: (0..half).map(frequency).collect() }
    }

    /// The angles of tokens at these positions.
    pub fn angles(&self, positions: &[u32]) -> Angles {
        let half = self.frequencies.len();
        let mut tables = Tables { half, cos: Vec::new(), sin: Vec::new() };
        for position in positions {
            for frequency in &self.frequencies {
                let (sin, cos) = f64::from(*position as f32 * frequency).sin_cos();
                tables.cos.push(cos as f32);
                tables.sin.push(sin as f32);
            }
        }
        Angles(Arc::new(tables))
    }
}

impl Tensor {
    /// Turns the first `heads` heads of each token by its angles; `[.., width]` in and out.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn rotate(&self, angles: &Angles, heads: usize) -> Result<Tensor> {
        let (width, half) = (self.shape().last_axis(), angles.0.half);
        if angles.0.cos.len() != self.shape().rows() * half || 2 * heads * half > width {
            let tokens = angles.0.cos.len() / half.max(1);
            let want = format!("{tokens} tokens of at least {heads} heads of {}", 2 * half);
            return Err(Error::shape("rotate", want, self.shape()));
        }
        let of = angles.clone();
        let turned = move |x: &Tensor, inverse: bool| {
            let mut y = x.detach();
            let Tables { half, cos, sin } = &*of.0;
            rotate(y.values_mut(), &Rotation { width, heads, half: *half, cos, sin, inverse });
            y
        };
        let edge = self.edge();
        Ok(turned(self, false).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || turned(&grad, true));
        }))
    }
}
