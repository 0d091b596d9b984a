//! Initial values.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, Uniform};

/// How the values of a new parameter are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All the same.
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// Normal with this standard deviation, cut at two of them (JAX and PyTorch call it truncated).
    TruncatedNormal(f32),
    /// Uniform within ±sqrt(6 / (inputs + outputs)) of a matrix (Glorot and Bengio 2010, Eq. 16).
    XavierUniform,
    /// Uniform within ±this bound.
    Uniform(f32),
    /// Nothing random: sines and cosines of the column of each place of a square grid, then of its
    /// row, `[places, width]` with a width of whole fours (Vaswani et al. 2017, arXiv:1706.03762, §3.5,
    /// for each axis).
    SinCosGrid,
}

impl Init {
    /// Values for a parameter; the same for the same seed and name, in whatever order parameters
    /// are made.
    pub(crate) fn draw(self, seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
        let n: usize = shape.iter().product();
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ hash(name));
        match self {
            Self::Constant(value) => vec![value; n],
            Self::Normal(std) => {
                let normal = normal(std);
                (0..n).map(|_| normal.sample(&mut rng)).collect()
            }
            Self::TruncatedNormal(std) => {
                let normal = normal(std);
                let mut next = || loop {
                    let v: f32 = normal.sample(&mut rng);
                    if v.abs() <= 2.0 * std {
                        return v;
                    }
                };
                (0..n).map(|_| next()).collect()
            }
            Self::XavierUniform => {
                let outputs = shape.first().copied().unwrap_or(1);
                let inputs = n / outputs.max(1);
                let bound = (6.0 / (inputs + outputs) as f32).sqrt();
                Self::Uniform(bound).draw(seed, name, shape)
            }
            Self::SinCosGrid => sin_cos_grid(shape),
            Self::Uniform(bound) => match Uniform::new_inclusive(-bound, bound) {
                Ok(uniform) => (0..n).map(|_| uniform.sample(&mut rng)).collect(),
                Err(_) => vec![0.0; n],
            },
        }
    }
}

fn sin_cos_grid(shape: &[usize]) -> Vec<f32> {
    let &[places, width] = shape else { return vec![0.0; shape.iter().product()] };
    let side = places.isqrt().max(1);
    let quarter = width / 4;
    let mut table = Vec::with_capacity(places * width);
    for place in 0..places {
        for at in [place % side, place / side] {
            let angle = |j: usize| at as f64 / 10_000_f64.powf(j as f64 / quarter as f64);
            table.extend((0..quarter).map(|j| angle(j).sin() as f32));
            table.extend((0..quarter).map(|j| angle(j).cos() as f32));
        }
        table.resize((place + 1) * width, 0.0);
    }
    table
}

fn normal(std: f32) -> Normal<f32> {
    Normal::new(0.0, std.abs()).expect("a finite standard deviation")
}

/// FNV-1a, fixed for all time: seeds depend on it.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_their_spread_and_depend_on_seed_and_name_only() {
        let v = Init::Normal(0.02).draw(1, "a", &[100, 100]);
        let std = (v.iter().map(|v| v * v).sum::<f32>() / 10_000.0).sqrt();
        assert!((std - 0.02).abs() < 1e-3);
        assert_eq!(v, Init::Normal(0.02).draw(1, "a", &[100, 100]));
        assert_ne!(v, Init::Normal(0.02).draw(2, "a", &[100, 100]));
        assert_ne!(v, Init::Normal(0.02).draw(1, "b", &[100, 100]));
        assert!(Init::TruncatedNormal(0.02).draw(1, "a", &[999]).iter().all(|v| v.abs() <= 0.04));
        let bound = (6.0_f32 / 30.0).sqrt();
        let v = Init::XavierUniform.draw(1, "a", &[10, 20]);
        assert!(v.iter().all(|v| v.abs() <= bound) && v.iter().any(|v| v.abs() > 0.9 * bound));
    }
}
