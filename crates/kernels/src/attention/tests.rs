//! Kernel equals reference; gradient equals finite differences of the reference.

use super::backward::backward_for;
use super::forward::forward_for;
use super::*;
use proptest::prelude::*;

fn values(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            ((s >> 40) as f32 / 8_388_608.0 - 1.0) * size
        })
        .collect()
}

struct Case {
    shape: Shape,
    fused: Vec<f32>,
    at: [Layout; 3],
    out_at: Layout,
    causal: bool,
    keys: Option<Vec<u8>>,
    bias: Option<Vec<f32>>,
    scale: f32,
}

impl Case {
    /// Self-attention over a fused projection.
    fn new(
        batch: usize,
        kv: usize,
        group: usize,
        tokens: usize,
        d: usize,
        flags: u8,
        seed: u64,
    ) -> Self {
        let heads = kv * group;
        let width = (heads + 2 * kv) * d;
        let shape =
            Shape { batch, heads, kv_heads: kv, queries: tokens, keys: tokens, head_dim: d };
        let part = |offset| Layout::part(tokens, width, offset, d);
        let mut keys: Vec<u8> =
            values(batch * tokens, seed + 1, 1.0).iter().map(|v| u8::from(*v > -0.5)).collect();
        if flags & 8 == 0 {
            keys.iter_mut().step_by(tokens).for_each(|k| *k = 1);
        }
        Self {
            shape,
            fused: values(batch * tokens * width, seed, 1.5),
            at: [part(0), part(heads * d), part((heads + kv) * d)],
            out_at: Layout::dense(tokens, heads, d),
            causal: flags & 1 != 0,
            keys: (flags & 2 != 0).then_some(keys),
            bias: (flags & 4 != 0).then(|| values(heads * tokens * tokens, seed + 2, 2.0)),
            scale: 1.0 / (d as f32).sqrt(),
        }
    }

    fn mask(&self) -> Mask<'_> {
        Mask {
            causal: self.causal,
            keys: self.keys.as_deref(),
            bias: self.bias.as_deref().map(|values| Bias {
                values,
                per_sample: false,
                per_head: true,
            }),
        }
    }

    fn reference(&self, x: &[f32]) -> Vec<f32> {
        let s = self.shape;
        let mut out = vec![0.0; s.batch * s.queries * s.heads * s.head_dim];
        let [q, k, v] = self.at;
        reference::forward(
            s,
            (x, q),
            (x, k),
            (x, v),
            self.scale,
            self.mask(),
            (&mut out, self.out_at),
        );
        out
    }

    fn forward(&self, isa: Isa) -> (Vec<f32>, Vec<f32>) {
        let s = self.shape;
        let mut out = vec![f32::NAN; s.batch * s.queries * s.heads * s.head_dim];
        let mut sums = vec![0.0; s.batch * s.heads * s.queries];
        let (x, [q, k, v]) = (&self.fused, self.at);
        let to = (&mut out[..], self.out_at);
        forward_for(isa, s, (x, q), (x, k), (x, v), self.scale, self.mask(), to, Some(&mut sums));
        (out, sums)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn forward_equals_the_reference(batch in 1..3_usize, kv in 1..3_usize, group in 1..3_usize,
                                    tokens in 1..90_usize, d in 1..40_usize, flags in 0..16_u8, seed: u32) {
        let case = Case::new(batch, kv, group, tokens, d, flags, u64::from(seed));
        let want = case.reference(&case.fused);
        for &isa in Isa::available() {
            let (got, _) = case.forward(isa);
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                prop_assert!((g - w).abs() < 5e-6, "{isa:?} at {i}: {g} {w}");
            }
        }
    }
}

#[test]
fn long_sequences_and_usual_heads() {
    for (tokens, d, flags) in [(1100, 8, 1), (1030, 16, 6), (197, 64, 0), (530, 80, 3)] {
        let case = Case::new(1, 1, 2, tokens, d, flags, 5);
        let want = case.reference(&case.fused);
        for &isa in Isa::available() {
            let (got, _) = case.forward(isa);
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 5e-6), "{isa:?} {tokens}");
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    for (tokens, d, flags) in
        [(5, 4, 0), (7, 3, 1), (9, 16, 2), (6, 5, 4), (60, 8, 7), (520, 4, 15)]
    {
        let case = Case::new(2, 2, 2, tokens, d, flags, 11);
        let s = case.shape;
        let g = values(s.batch * s.queries * s.heads * d, 3, 1.0);
        let loss = |x: &[f32]| -> f64 {
            case.reference(x).iter().zip(&g).map(|(o, g)| f64::from(*o) * f64::from(*g)).sum()
        };
        for &isa in Isa::available() {
            let (out, sums) = case.forward(isa);
            let mut grad = vec![f32::NAN; case.fused.len()];
            let pairs = s.batch * s.heads;
            let mut grad_bias = vec![f32::NAN; pairs * s.queries * s.keys];
            let (x, [q, k, v]) = (&case.fused, case.at);
            backward_for(
                isa,
                s,
                (x, q),
                (x, k),
                (x, v),
                case.scale,
                case.mask(),
                (&out, &g, case.out_at),
                &sums,
                Grads::Fused(&mut grad),
                Some(&mut grad_bias),
            );
            assert!(grad_bias.iter().all(|g| g.is_finite()));
            if let Some(bias) = &case.bias {
                bias_gradient_equals_finite_differences(&case, bias, &grad_bias, &g);
            }
            assert!(grad.iter().all(|g| g.is_finite()));
            let step = grad.len() / 12 + 1;
            for i in (0..grad.len()).step_by(step) {
                let h = 5e-3;
                let mut moved = case.fused.clone();
                moved[i] += h;
                let up = loss(&moved);
                moved[i] = case.fused[i] - h;
                let slope = (up - loss(&moved)) / (2.0 * f64::from(h));
                let error = (slope - f64::from(grad[i])).abs();
                assert!(
                    error < 2e-3 * (1.0 + slope.abs()),
                    "{tokens} {d} {flags} {isa:?} at {i}: {} {slope}",
                    grad[i]
                );
            }
        }
    }
}

fn bias_gradient_equals_finite_differences(case: &Case, bias: &[f32], grad: &[f32], g: &[f32]) {
    let s = case.shape;
    let per_sample = s.heads * s.queries * s.keys;
    let loss = |moved: Vec<f32>| -> f64 {
        let x = &case.fused;
        let moved = Case { bias: Some(moved), fused: x.clone(), keys: case.keys.clone(), ..*case };
        moved.reference(x).iter().zip(g).map(|(o, g)| f64::from(*o) * f64::from(*g)).sum()
    };
    for i in (0..per_sample).step_by(per_sample / 5 + 1) {
        let moved = |by: f32| {
            let mut moved = bias.to_vec();
            moved[i] += by;
            loss(moved)
        };
        let slope = (moved(5e-3) - moved(-5e-3)) / 1e-2;
        let got: f32 = (0..s.batch).map(|b| grad[b * per_sample + i]).sum();
        let error = (slope - f64::from(got)).abs();
        assert!(error < 2e-3 * (1.0 + slope.abs()), "bias at {i}: {got} {slope}");
    }
}

#[test]
fn a_sample_does_not_depend_on_the_batch() {
    let case = Case::new(3, 2, 1, 50, 16, 3, 4);
    let (all, _) = case.forward(Isa::best());
    let per = case.fused.len() / 3;
    let mut one = Case::new(1, 2, 1, 50, 16, 3, 4);
    one.fused = case.fused[per..2 * per].to_vec();
    one.keys = case.keys.as_ref().map(|k| k[50..100].to_vec());
    let (alone, _) = one.forward(Isa::best());
    assert_eq!(alone, all[alone.len()..2 * alone.len()]);
}
