//! Attention as one operation.

use crate::tape::{Edge, Tape};
use crate::{Error, Result, Tensor};
use ocelli_kernels::attention::{Bias, Grads, Layout, Mask, Shape, backward, forward};
use ocelli_kernels::narrow::{self, Narrow};
use ocelli_kernels::{Buffer, elementwise};
use std::sync::Arc;

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
}

impl Heads {
    /// As many key heads as query heads.
    pub fn same(heads: usize) -> Self {
        Self { heads, kv_heads: heads }
    }
}

/// Which keys a query sees.
#[derive(Clone, Debug, Default)]
pub struct AttentionMask {
    /// Query i sees keys up to i + keys - queries.
    pub is_causal: bool,
    /// `[batch, keys]`, 0 for a key that nobody sees (padding).
    pub keys: Option<Arc<[u8]>>,
    /// Added to the scaled scores, `[batch or 1, heads or 1, queries, keys]`.
    pub bias: Option<Tensor>,
    /// Multiplies the scores; head_dim^-1/2 if `None`.
    pub scale: Option<f32>,
}

impl AttentionMask {
    /// Each token sees itself and those before it.
    pub fn causal() -> Self {
        Self { is_causal: true, ..Self::default() }
    }

    /// Whether every query sees every key, and nothing is added.
    fn is_none(&self) -> bool {
        !self.is_causal && self.keys.is_none() && self.bias.is_none()
    }

    fn scale(&self, s: &Shape) -> f32 {
        self.scale.unwrap_or(1.0 / (s.head_dim as f32).sqrt())
    }

    /// Room for the gradient of the bias in the kernel's form, if it wants one.
    fn bias_grad(&self, s: &Shape) -> Option<Buffer<f32>> {
        let is_wanted = self.bias.as_ref().is_some_and(|b| b.edge().is_tracked());
        is_wanted.then(|| Buffer::uninit(s.batch * s.heads * s.queries * s.keys))
    }

    /// Passes the gradient of the bias on, summed over the samples and heads that share it.
    fn add_bias_grad(&self, s: &Shape, all: Option<Buffer<f32>>, tape: &mut Tape) {
        let (Some(bias), Some(all)) = (&self.bias, all) else { return };
        tape.add(&bias.edge(), || {
            let (batch, heads) = (bias.shape()[0], bias.shape()[1]);
            let mut d = Buffer::zeroed(bias.elements());
            let scores = s.queries * s.keys;
            for (pair, from) in all.chunks_exact(scores).enumerate() {
                let (sample, head) = (pair / s.heads, pair % s.heads);
                let at = if batch > 1 { sample * heads } else { 0 };
                let at = at + if heads > 1 { head } else { 0 };
                elementwise::add_assign(&mut d[at * scores..][..scores], from);
            }
            Tensor::new(d, bias.shape().clone())
        });
    }

    fn edge(&self) -> Edge {
        self.bias.as_ref().map_or(Edge(None), Tensor::edge)
    }

    fn of(&self, s: &Shape) -> Result<Mask<'_>> {
        let sizes = [s.batch, s.heads, s.queries, s.keys];
        let bias = self.bias.as_ref().map(|b| bias_of(b, sizes)).transpose()?;
        if let Some(k) = self.keys.as_ref().filter(|k| k.len() != s.batch * s.keys) {
            let got = [k.len()].into();
            return Err(Error::shape("attention", "a key mask [batch, keys]", &got));
        }
        Ok(Mask { causal: self.is_causal, keys: self.keys.as_deref(), bias })
    }
}

/// A bias `[batch or 1, heads or 1, queries, keys]` for the kernels.
pub(super) fn bias_of(
    bias: &Tensor,
    [batch, heads, queries, keys]: [usize; 4],
) -> Result<Bias<'_>> {
    match bias.shape()[..] {
        [b, h, q, k]
            if (b == 1 || b == batch) && (h == 1 || h == heads) && (q, k) == (queries, keys) =>
        {
            Ok(Bias { values: bias.values(), per_sample: b > 1, per_head: h > 1 })
        }
        _ => {
            let want = "a bias [batch or 1, heads or 1, queries, keys]";
            Err(Error::shape("attention", want, bias.shape()))
        }
    }
}

impl Tensor {
    /// Self-attention over a fused projection `[batch, tokens, (heads + 2 kv_heads) head_dim]`,
    /// queries first, then keys, then values, each head by head; gives
    /// `[batch, tokens, heads head_dim]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn self_attention(&self, heads: Heads, mask: &AttentionMask) -> Result<Tensor> {
        self.self_attention_in(None, heads, mask)
    }

    /// The same with operands rounded to `kind`, where that is faster, nothing is hidden or added,
    /// and nothing learns.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn self_attention_in(
        &self,
        kind: Option<Narrow>,
        heads: Heads,
        mask: &AttentionMask,
    ) -> Result<Tensor> {
        let Heads { heads, kv_heads } = heads;
        let parts = heads + 2 * kv_heads;
        let &[batch, tokens, width] = &self.shape()[..] else {
            return Err(Error::shape("self_attention", "[batch, tokens, width]", self.shape()));
        };
        if !width.is_multiple_of(parts) || !heads.is_multiple_of(kv_heads) {
            let want = format!("a width of {parts} heads");
            return Err(Error::shape("self_attention", want, self.shape()));
        }
        let head_dim = width / parts;
        let s = Shape { batch, heads, kv_heads, queries: tokens, keys: tokens, head_dim };
        let at = |head: usize| Layout::part(tokens, width, head * head_dim, head_dim);
        let layouts = [at(0), at(heads), at(heads + kv_heads)];
        let out_at = Layout::dense(tokens, heads, head_dim);
        let scale = mask.scale(&s);
        let x = self.values();
        let [q_at, k_at, v_at] = layouts;
        let mut out = Buffer::uninit(batch * tokens * heads * head_dim);
        let parents = [self.edge(), mask.edge()];
        let tracked = parents.iter().any(Edge::is_tracked);
        let to = (&mut out[..], out_at);
        let may_be_narrow = !tracked && mask.is_none();
        if let Some(kind) = kind.filter(|kind| may_be_narrow && narrow::attends(*kind, tokens)) {
            narrow::attend(kind, s, (x, q_at), (x, k_at), (x, v_at), scale, to);
            return Ok(Tensor::new(out, [batch, tokens, heads * head_dim]));
        }
        let mut sums = tracked.then(|| Buffer::uninit(batch * heads * tokens));
        let m = mask.of(&s)?;
        forward(s, (x, q_at), (x, k_at), (x, v_at), scale, m, to, sums.as_deref_mut());
        let out = Tensor::new(out, [batch, tokens, heads * head_dim]);
        let Some(sums) = sums else { return Ok(out) };
        let (edge, qkv, mask, o) = (self.edge(), self.detach(), mask.clone(), out.clone());
        Ok(out.tracked(&[&parents[0], &parents[1]], move |grad, tape| {
            let x = qkv.values();
            let mut d = Buffer::uninit(x.len());
            let mut d_bias = mask.bias_grad(&s);
            let m = mask.of(&s).expect("the mask fitted in the forward pass");
            let io = (o.values(), grad.values(), out_at);
            let to = Grads::Fused(&mut d);
            let b = d_bias.as_deref_mut();
            backward(s, (x, q_at), (x, k_at), (x, v_at), scale, m, io, &sums, to, b);
            tape.add(&edge, || Tensor::new(d, qkv.shape().clone()));
            mask.add_bias_grad(&s, d_bias, tape);
        }))
    }

    /// Attention of queries `[batch, queries, heads head_dim]` to `keys` and `values`
    /// `[batch, keys, kv_heads head_dim]`; gives the shape of the queries.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn attention(
        &self,
        keys: &Tensor,
        values: &Tensor,
        heads: Heads,
        mask: &AttentionMask,
    ) -> Result<Tensor> {
        let Heads { heads, kv_heads } = heads;
        let &[batch, queries, width] = &self.shape()[..] else {
            return Err(Error::shape("attention", "[batch, queries, width]", self.shape()));
        };
        let head_dim = width / heads;
        if head_dim * heads != width || !heads.is_multiple_of(kv_heads) {
            return Err(Error::shape("attention", format!("{heads} heads"), self.shape()));
        }
        for t in [keys, values] {
            if t.shape().len() != 3 || t.shape()[0] != batch || t.shape()[2] != kv_heads * head_dim
            {
                let want = format!("[{batch}, keys, {}]", kv_heads * head_dim);
                return Err(Error::shape("attention", want, t.shape()));
            }
        }
        if keys.shape() != values.shape() {
            return Err(Error::shape("attention", keys.shape().to_string(), values.shape()));
        }
        let s = Shape { batch, heads, kv_heads, queries, keys: keys.shape()[1], head_dim };
        let q_at = Layout::dense(queries, heads, head_dim);
        let kv_at = Layout::dense(s.keys, kv_heads, head_dim);
        let scale = mask.scale(&s);
        let parents = [self.edge(), keys.edge(), values.edge(), mask.edge()];
        let tracked = parents.iter().any(Edge::is_tracked);
        let mut out = Buffer::uninit(self.elements());
        let mut sums = tracked.then(|| Buffer::uninit(batch * heads * queries));
        let m = mask.of(&s)?;
        let operands = [self.detach(), keys.detach(), values.detach()];
        {
            let [q, k, v] = operands.each_ref().map(Tensor::values);
            let to = (&mut out[..], q_at);
            forward(s, (q, q_at), (k, kv_at), (v, kv_at), scale, m, to, sums.as_deref_mut());
        }
        let out = Tensor::new(out, self.shape().clone());
        let Some(sums) = sums else { return Ok(out) };
        let (mask, o, edges) = (mask.clone(), out.clone(), parents.clone());
        Ok(out.tracked(&parents.each_ref(), move |grad, tape| {
            let [q, k, v] = operands.each_ref().map(Tensor::values);
            let mut d = operands.each_ref().map(|t| Buffer::uninit(t.elements()));
            let m = mask.of(&s).expect("the mask fitted in the forward pass");
            let io = (o.values(), grad.values(), q_at);
            let [dq, dk, dv] = &mut d;
            let to = Grads::Separate(dq, dk, dv);
            let mut d_bias = mask.bias_grad(&s);
            let b = d_bias.as_deref_mut();
            backward(s, (q, q_at), (k, kv_at), (v, kv_at), scale, m, io, &sums, to, b);
            for ((edge, d), t) in edges.iter().zip(d).zip(&operands) {
                tape.add(edge, || Tensor::new(d, t.shape().clone()));
            }
            mask.add_bias_grad(&s, d_bias, tape);
        }))
    }
}
