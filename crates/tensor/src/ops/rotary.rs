//! Rotary position embedding.

use crate::{Error, Result, Tensor};
use ocelli_kernels::rotary::{Rotation, rotate};
use std::sync::Arc;

/// A rotary position embedding (Su et al. 2021, arXiv:2104.09864).
#[derive(Clone, Debug)]
pub struct Rotary {
    /// How far each pair of a head turns from one position to the next.
    frequencies: Vec<f32>,
    turns_half_back: bool,
}

/// The angles of some tokens, as cosines and sines; copies share them.
#[derive(Clone, Debug)]
pub struct Angles(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    turns_half_back: bool,
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
        Self { frequencies: (0..half).map(frequency).collect(), turns_half_back: false }
    }

    /// The same with a backward pass that is none of its gradient: first halves of heads are turned
    /// back, second ones once more. Published results of InternLM-XComposer were made so; this is for
    /// holding all else against them, never for training.
    #[must_use]
    pub fn turning_half_back(self) -> Self {
        Self { turns_half_back: true, ..self }
    }

    /// The same with frequencies that are rounded to 16 bits of f16, as a model keeps them that was
    /// trained so. All are at least 6.2e-5, so none is subnormal.
    #[must_use]
    pub fn rounded_to_f16(mut self) -> Self {
        for frequency in &mut self.frequencies {
            let bits = frequency.to_bits();
            *frequency = f32::from_bits((bits + 0xFFF + ((bits >> 13) & 1)) & !0x1FFF);
        }
        self
    }

    /// How far each pair of a head turns from one position to the next.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// The angles of tokens at these positions.
    pub fn angles(&self, positions: &[u32]) -> Angles {
        let (half, turns_half_back) = (self.frequencies.len(), self.turns_half_back);
        let mut tables = Tables { half, cos: Vec::new(), sin: Vec::new(), turns_half_back };
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

impl Angles {
    /// Those of the tokens of each part, one part behind the other. All are of heads of one size.
    ///
    /// # Errors
    /// If they are not.
    pub fn join(parts: &[Self]) -> Result<Self> {
        let half = parts.first().map_or(0, |part| part.0.half);
        let turns_half_back = parts.iter().any(|part| part.0.turns_half_back);
        let mut tables = Tables { half, cos: Vec::new(), sin: Vec::new(), turns_half_back };
        for part in parts {
            if part.0.half != half {
                let got = [2 * part.0.half].into();
                return Err(Error::shape("join", format!("heads of {}", 2 * half), &got));
            }
            tables.cos.extend_from_slice(&part.0.cos);
            tables.sin.extend_from_slice(&part.0.sin);
        }
        Ok(Self(Arc::new(tables)))
    }

    /// The same for tokens that are also multiplied by these factors, one for each.
    #[must_use]
    pub fn scaled(&self, factors: &[f32]) -> Self {
        let Tables { half, cos, sin, turns_half_back } = &*self.0;
        let (half, turns_half_back) = (*half, *turns_half_back);
        let scaled = |values: &[f32]| {
            let tokens = values.chunks(half.max(1)).zip(factors);
            tokens.flat_map(|(token, factor)| token.iter().map(move |v| v * factor)).collect()
        };
        Self(Arc::new(Tables { half, cos: scaled(cos), sin: scaled(sin), turns_half_back }))
    }
}

impl Tensor {
    /// Turns the first `heads` heads of each token by its angles; `[.., width]` in and out.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn rotate(&self, angles: &Angles, heads: usize) -> Result<Tensor> {
        self.rotate_part(angles, heads, 2 * angles.0.half)
    }

    /// The same for heads of `head_dim` values, of which the angles turn the first ones.
    ///
    /// # Errors
    /// If sizes do not fit.
    pub fn rotate_part(&self, angles: &Angles, heads: usize, head_dim: usize) -> Result<Tensor> {
        let (width, half) = (self.shape().last_axis(), angles.0.half);
        let has_angles = angles.0.cos.len() == self.shape().rows() * half;
        if !has_angles || heads * head_dim > width || 2 * half > head_dim {
            let tokens = angles.0.cos.len() / half.max(1);
            let want = format!("{tokens} tokens of at least {heads} heads of {head_dim}");
            return Err(Error::shape("rotate", want, self.shape()));
        }
        let of = angles.clone();
        let turned = move |x: &Tensor, inverse: bool| {
            let mut y = x.detach();
            let Tables { half, cos, sin, .. } = &*of.0;
            rotate(
                y.values_mut(),
                &Rotation { width, heads, head_dim, half: *half, cos, sin, inverse },
            );
            y
        };
        let (edge, turns_half_back) = (self.edge(), angles.0.turns_half_back);
        Ok(turned(self, false).tracked(&[&edge.clone()], move |grad, tape| {
            tape.add(&edge, || {
                let mut back = turned(&grad, true);
                if turns_half_back {
                    let again = turned(&grad, false);
                    let tokens = back.values_mut().chunks_exact_mut(width.max(1));
                    for (back, again) in tokens.zip(again.values().chunks_exact(width.max(1))) {
                        for head in 0..heads {
                            let second = head * head_dim + half..head * head_dim + 2 * half;
                            back[second.clone()].copy_from_slice(&again[second]);
                        }
                    }
                }
                back
            });
        }))
    }
}
