//! Group normalisation.

use super::conv::pictures;
use crate::{Error, Result, Tensor};
use ocelli_kernels::Buffer;
use ocelli_kernels::group_norm::{Affine, Gradients, GroupNorm, backward, forward};

/// How a group norm groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormOptions {
    /// Groups of neighbouring channels; divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether negative outputs become 0.
    pub relu: bool,
}

impl Tensor {
    /// Group normalisation of pictures `[batch, channels, img_h, img_w]` (Wu and He 2018,
    /// arXiv:1803.08494), then scaled and shifted by `weight` and `bias` `[channels]`.
    ///
    /// # Errors
    /// If shapes do not fit or the groups do not divide the channels.
    pub fn group_norm(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        options: GroupNormOptions,
    ) -> Result<Tensor> {
        let [batch, channels, img_h, img_w] = pictures("group_norm", self)?;
        let GroupNormOptions { groups, eps, relu } = options;
        if groups == 0 || !channels.is_multiple_of(groups) {
            let want = format!("channels that {groups} groups divide");
            return Err(Error::shape("group_norm", want, self.shape()));
        }
        if let Some(t) = [weight, bias].into_iter().find(|t| t.shape()[..] != [channels]) {
            return Err(Error::shape("group_norm", format!("[{channels}]"), t.shape()));
        }
        let group_channels = channels / groups;
        let sizes = GroupNorm { batch, groups, group_channels, pixels: img_h * img_w, eps, relu };
        let mut out = Buffer::uninit(self.elements());
        let affine = Affine { gamma: weight.values(), beta: bias.values() };
        forward(&sizes, self.values(), affine, &mut out);
        let edges = [self.edge(), weight.edge(), bias.edge()];
        let [x, weight, bias] = [self, weight, bias].map(Tensor::detach);
        let parents = edges.clone();
        let out = Tensor::new(out, x.shape().clone());
        Ok(out.tracked(&parents.each_ref(), move |grad, tape| {
            let mut input = Buffer::uninit(x.elements());
            let (mut gamma, mut beta) = (Buffer::uninit(channels), Buffer::uninit(channels));
            let affine = Affine { gamma: weight.values(), beta: bias.values() };
            let gradients = Gradients { input: &mut input, gamma: &mut gamma, beta: &mut beta };
            backward(&sizes, x.values(), affine, grad.values(), gradients);
            tape.add(&edges[0], || Tensor::new(input, x.shape().clone()));
            tape.add(&edges[1], || Tensor::new(gamma, [channels]));
            tape.add(&edges[2], || Tensor::new(beta, [channels]));
        }))
    }
}
