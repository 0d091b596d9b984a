//! The first stage of BLIP-2: three losses teach the queries to read pictures.
//!
//! Li et al. 2023, "BLIP-2", arXiv:2301.12597, §3.2 and Figure 2: contrast, matching and writing,
//! summed with equal weights. Negatives are drawn by the caller, from [`negative_weights`].

use super::blip2::{Blip2, Contrast};
use crate::connector::qformer::Memory;
use crate::language::bert::Texts;
use crate::{Error, Result};
use ocelli_tensor::{Targets, Tensor};
use std::sync::Arc;

/// Which pair of the batch each sample is to be told apart from (§3.2, hard negatives).
#[derive(Clone, Debug)]
pub struct Negatives {
    /// The picture that is shown with text `i`.
    pub images: Arc<[u32]>,
    /// The text that is shown with picture `i`.
    pub texts: Arc<[u32]>,
}

/// The losses of the first stage and what they are made of.
#[derive(Clone, Debug)]
pub struct FirstStage {
    /// Pictures and texts in the joint space.
    pub contrast: Contrast,
    /// Cosines over the temperature, `[images, texts]`.
    pub similarities: Tensor,
    /// Queries and texts of each pair, `[3 batch, queries + tokens, width]`.
    pub pairs: Tensor,
    /// Logits of no match and match, `[3 batch, 2]`: pairs, negative pictures, negative texts.
    pub match_logits: Tensor,
    /// Image-text contrast.
    pub contrast_loss: Tensor,
    /// Image-text matching.
    pub matching_loss: Tensor,
    /// Image-grounded writing.
    pub language_loss: Tensor,
}

impl FirstStage {
    /// The sum of the three losses.
    ///
    /// # Errors
    /// Never; a result like the other operations.
    pub fn loss(&self) -> Result<Tensor> {
        Ok(self.contrast_loss.add(&self.matching_loss)?.add(&self.language_loss)?)
    }
}

/// Label smoothing of contrast and writing, as in the original code.
const SMOOTHING: f32 = 0.1;

impl Blip2 {
    /// The three losses of the first stage (§3.2) for pictures and texts that belong together by
    /// index. Texts begin with the class token; the writer's begin with `bos` in its place.
    ///
    /// # Errors
    /// If the model is not one of the first stage, or the inputs do not suit.
    pub fn first_stage(
        &self,
        memory: &Memory,
        texts: &Texts,
        bos: u32,
        negatives: &Negatives,
    ) -> Result<FirstStage> {
        let batch = texts.batch;
        let contrast = self.compare(memory, texts)?;
        let temperature = self.temperature().ok_or_else(untrained)?;
        let similarities = contrast.cosines.divide_by(&temperature)?;
        let diagonal = Targets::Classes((0..batch as u32).collect(), SMOOTHING);
        let by_image = similarities.cross_entropy(&diagonal)?;
        let by_text = similarities.transpose()?.cross_entropy(&diagonal)?;
        let contrast_loss = by_image.add(&by_text)?.scale(0.5)?;

        let other = rows_of(&memory.tokens, &negatives.images)?;
        let shown = Tensor::cat(&[&memory.tokens, &other, &memory.tokens], 0)?.into();
        let pairs = self.qformer().join(&shown, &with_negatives(texts, &negatives.texts)?)?;
        let match_logits = self.match_logits(&pairs)?; // [3 batch, 2]
        let classes = (0..3 * batch).map(|i| u32::from(i < batch)).collect();
        let matching_loss = match_logits.cross_entropy(&Targets::Classes(classes, 0.0))?;

        let (written, labels) = to_write(texts, bos);
        let language_loss = self.qformer().language_loss(memory, &written, &labels, SMOOTHING)?;
        Ok(FirstStage {
            contrast,
            similarities,
            pairs,
            match_logits,
            contrast_loss,
            matching_loss,
            language_loss,
        })
    }
}

fn untrained() -> Error {
    Error::Unsuitable {
        what: "the losses of the first stage",
        needs: "a checkpoint with a temperature, as LAVIS writes it",
        is: "a BLIP-2 without one".to_owned(),
    }
}

/// The samples `which` of `[batch, tokens, width]`.
pub(super) fn rows_of(x: &Tensor, which: &Arc<[u32]>) -> Result<Tensor> {
    let &[batch, tokens, width] = &x.shape()[..] else { unreachable!("tokens of each image") };
    let rows = x.reshape(&[batch, tokens * width])?.embedding(which, &[which.len()])?;
    Ok(rows.reshape(&[which.len(), tokens, width])?)
}

/// The texts of pairs, of negative pictures and of negative texts, one after another.
pub(super) fn with_negatives(texts: &Texts, negatives: &[u32]) -> Result<Texts> {
    if let Some(wrong) = negatives.iter().find(|i| **i as usize >= texts.batch) {
        let (index, len) = (*wrong as usize, texts.batch);
        return Err(ocelli_tensor::Error::Index { op: "negative texts", index, len }.into());
    }
    let own: Vec<u32> = (0..texts.batch as u32).collect();
    let order = || own.iter().chain(&own).chain(negatives).map(|i| *i as usize);
    let tokens = texts.tokens();
    Ok(Texts {
        ids: order().flat_map(|i| texts.ids[i * tokens..][..tokens].to_vec()).collect(),
        token_types: vec![0; 3 * texts.ids.len()].into(),
        mask: order().flat_map(|i| texts.mask[i * tokens..][..tokens].to_vec()).collect(),
        batch: 3 * texts.batch,
    })
}

/// The texts behind the writer's first token, and their labels without the padding.
pub fn to_write(texts: &Texts, bos: u32) -> (Texts, Vec<u32>) {
    let tokens = texts.tokens().max(1);
    let ids = texts.ids.iter().enumerate();
    let ids: Arc<[u32]> = ids.map(|(i, id)| if i % tokens == 0 { bos } else { *id }).collect();
    let real = ids.iter().zip(&texts.mask[..]);
    let labels = real.map(|(id, m)| if *m == 0 { Targets::IGNORED } else { *id }).collect();
    (Texts { ids, ..texts.clone() }, labels)
}

/// How likely each other sample is drawn as the negative of a row, from similarities
/// `[batch, batch]`: their softmax without the pair itself (§3.2).
///
/// # Errors
/// If the similarities are not square.
pub fn negative_weights(similarities: &Tensor) -> Result<Tensor> {
    let n = similarities.shape().last_axis();
    let mut weights = similarities.values().to_vec();
    for (i, row) in weights.chunks_exact_mut(n.max(1)).enumerate() {
        row[i] = f32::NEG_INFINITY;
        let largest = row.iter().copied().fold(f32::MIN, f32::max);
        row.iter_mut().for_each(|w| *w = (*w - largest).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|w| *w /= sum.max(f32::MIN_POSITIVE));
    }
    Ok(Tensor::from_slice(&weights, &[n, n])?)
}
