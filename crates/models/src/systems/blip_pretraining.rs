//! How BLIP learns: three losses, and copies of the encoders that follow slowly.
//!
//! Li et al. 2022, "BLIP", arXiv:2201.12086, §3.2, with the momentum encoders, queues and soft
//! targets of Li et al. 2021, "ALBEF", arXiv:2107.07651, §3.2 and §3.3. A step is
//! [`Blip::follow`], [`Blip::pretrain`], the optimiser's, and [`Blip::remember`].

use super::blip::{Blip, BlipConfig, Contrast, class_of, original_vit_names, projection};
use super::blip2_pretraining::{Negatives, rows_of, to_write, with_negatives};
use crate::language::bert::{Memory, Texts};
use crate::language::med::{self, Med};
use crate::vision::vit::Vit;
use crate::{Error, Result};
use ocelli_nn::layers::Linear;
use ocelli_nn::{Builder, Init, Name, Names, Parameter, Parameters, copy};
use ocelli_tensor::{Targets, Tensor, no_grad};

/// Copies of what contrast needs, and the features that they gave.
#[derive(Debug)]
pub(super) struct Momentum {
    vision: Vit,
    encoder: Med,
    image: Linear,
    text: Linear,
    temperature: Parameter,
    /// Features of earlier pictures and texts, `[embed_dim, queue]`.
    images: Parameter,
    texts: Parameter,
    /// The oldest column of the queues.
    next: Parameter,
}

/// The published share of the copies that stays in each step.
pub const MOMENTUM: f32 = 0.995;
/// The published share of the copies' opinion in the targets of contrast, reached after two epochs.
pub const ALPHA: f32 = 0.4;
/// Names of the copies begin with it, and go on as those of what they follow.
const COPIES: &str = "momentum";
/// The range of the temperature.
const TEMPERATURES: (f32, f32) = (0.001, 0.5);
/// Label smoothing of writing.
const SMOOTHING: f32 = 0.1;
/// Added to the probability of each negative, so that none is out of the question.
const LEAST_WEIGHT: f32 = 1e-4;

impl Momentum {
    /// None if the model does not compare pictures and texts.
    pub(super) fn new(c: &BlipConfig, queue: usize, b: &Builder) -> Option<Self> {
        let (text, embed_dim) = (c.encoder.as_ref()?, c.embed_dim?);
        let copies = b.at(COPIES);
        let (heads, queues) = (copies.at("matching"), b.at("queue"));
        Some(Self {
            vision: Vit::new(&c.vision, &copies.at("vision")),
            encoder: Med::new(text, &copies.at("encoder")),
            image: projection(&heads, "image", c.vision.width, embed_dim),
            text: projection(&heads, "text", text.width, embed_dim),
            temperature: b.parameter("temperature", &[], Init::Constant(0.07)),
            images: queues.buffer("images", &[embed_dim, queue], 0.0),
            texts: queues.buffer("texts", &[embed_dim, queue], 0.0),
            next: queues.buffer("next", &[1], 0.0),
        })
    }
}

/// The losses of pre-training and what they are made of.
#[derive(Clone, Debug)]
pub struct Pretraining {
    /// Pictures and texts in the joint space.
    pub contrast: Contrast,
    /// The same by the copies, `[images, embed_dim]` and `[texts, embed_dim]`.
    pub copies: [Tensor; 2],
    /// Cosines of pictures with the copies' texts of the batch and of the queue, over the
    /// temperature, `[batch, batch + queue]`.
    pub by_image: Tensor,
    /// The same of texts with pictures.
    pub by_text: Tensor,
    /// Logits of no match and match, `[3 batch, 2]`: pairs, negative pictures, negative texts.
    pub match_logits: Tensor,
    /// Logits of the next word, `[batch, tokens, vocab]`.
    pub words: Tensor,
    /// Image-text contrast.
    pub contrast_loss: Tensor,
    /// Image-text matching.
    pub matching_loss: Tensor,
    /// Language modelling.
    pub language_loss: Tensor,
}

impl Pretraining {
    /// The sum of the three losses.
    ///
    /// # Errors
    /// Never; a result like the other operations.
    pub fn loss(&self) -> Result<Tensor> {
        Ok(self.contrast_loss.add(&self.matching_loss)?.add(&self.language_loss)?)
    }
}

impl Blip {
    fn momentum(&self) -> Result<&Momentum> {
        self.momentum.as_ref().ok_or_else(|| Error::Unsuitable {
            what: "pre-training",
            needs: "a BLIP with momentum copies, as the original code writes it",
            is: "a BLIP without them".to_owned(),
        })
    }

    /// Leaves the copies to [`Blip::follow`] alone: no gradient is computed for them. `parameters` are
    /// those of this model.
    pub fn freeze_copies(&self, parameters: &Parameters) {
        let is_copy = |p: &&Parameter| {
            p.name().strip_prefix(COPIES).is_some_and(|rest| rest.starts_with('.'))
        };
        parameters.iter().filter(is_copy).for_each(|p| p.set_trainable(false));
    }

    /// Begins a step: the copies become `old * momentum + new * (1 - momentum)`, and the temperature
    /// returns to its range. `parameters` are those of this model.
    pub fn follow(&self, parameters: &Parameters, momentum: f32) {
        for copy in parameters.iter() {
            let followed = copy.name().strip_prefix(COPIES).and_then(|n| n.strip_prefix('.'));
            let Some(followed) = followed.and_then(|name| parameters.get(name)) else { continue };
            let followed = followed.tensor();
            copy.update(|old| {
                for (old, new) in old.iter_mut().zip(followed.values()) {
                    *old = *old * momentum + new * (1.0 - momentum);
                }
            });
        }
        if let Some(momentum) = &self.momentum {
            let (least, most) = TEMPERATURES;
            momentum.temperature.update(|t| t.iter_mut().for_each(|t| *t = t.clamp(least, most)));
        }
    }

    /// The three losses for pictures and texts that belong together by index; texts begin with the
    /// class token. `alpha` is the share of the copies' opinion in the targets of contrast.
    ///
    /// # Errors
    /// If the model is not one for pre-training, or the inputs do not suit.
    pub fn pretrain(
        &self,
        pixels: &Tensor,
        texts: &Texts,
        alpha: f32,
        negatives: &Negatives,
    ) -> Result<Pretraining> {
        let (batch, tokens) = (texts.batch, self.config().tokens);
        let m = self.momentum()?;
        let memory = self.image_tokens(pixels)?;

        // Image-text contrast.
        let contrast = self.compare(&memory, texts)?;
        let [image_m, text_m] = no_grad(|| {
            let image = m.image.forward(&class_of(&m.vision.features(pixels)?)?)?.l2_normalise()?;
            let text = m.text.forward(&class_of(&m.encoder.features(texts, None)?)?)?;
            Ok::<_, Error>([image, text.l2_normalise()?])
        })?;
        let temperature = m.temperature.tensor();
        let all = |batch: &Tensor, queue: &Parameter| {
            Ok::<_, Error>(Tensor::cat(&[&batch.transpose()?, &queue.tensor()], 1)?)
        };
        let (images, texts_m) = (all(&image_m, &m.images)?, all(&text_m, &m.texts)?);
        let against = |batch: &Tensor, all: &Tensor| batch.matmul(all)?.divide_by(&temperature);
        let by_image = against(&contrast.images, &texts_m)?; // [batch, batch + queue]
        let by_text = against(&contrast.texts, &images)?;
        let soft = |batch: &Tensor, all: &Tensor| {
            Ok::<_, Error>(Targets::Distributions(targets(&against(batch, all)?, alpha)?))
        };
        let [to_text, to_image] =
            no_grad(|| Ok::<_, Error>([soft(&image_m, &texts_m)?, soft(&text_m, &images)?]))?;
        let contrast_loss = by_image.cross_entropy(&to_text)?;
        let contrast_loss = contrast_loss.add(&by_text.cross_entropy(&to_image)?)?.scale(0.5)?;

        // Image-text matching.
        let other = rows_of(&memory.tokens, &negatives.images)?;
        let shown: Memory = Tensor::cat(&[&memory.tokens, &other, &memory.tokens], 0)?.into();
        let (read, _) = to_write(texts, tokens.encode);
        let pairs = with_negatives(&read, &negatives.texts)?;
        let match_logits = self.match_logits(&self.encoder()?.features(&pairs, Some(&shown))?)?;
        let classes = (0..3 * batch).map(|i| u32::from(i < batch)).collect();
        let matching_loss = match_logits.cross_entropy(&Targets::Classes(classes, 0.0))?;

        // Language modelling.
        let (written, labels) = to_write(texts, tokens.decode);
        let decoder = self.decoder()?;
        let words = decoder.words(&decoder.features(&written, Some(&memory))?)?;
        let language_loss = decoder.loss(&words, &labels, SMOOTHING)?;
        let copies = [image_m, text_m];
        Ok(Pretraining {
            contrast,
            copies,
            by_image,
            by_text,
            match_logits,
            words,
            contrast_loss,
            matching_loss,
            language_loss,
        })
    }

    /// Ends a step: the copies' features `[batch, embed_dim]` take the place of the oldest ones.
    ///
    /// # Errors
    /// If the model is not one for pre-training, or the features are not of its width.
    pub fn remember(&self, [images, texts]: &[Tensor; 2]) -> Result<()> {
        let m = self.momentum()?;
        let (embed_dim, columns) = (m.images.shape()[0], m.images.shape()[1]);
        for features in [images, texts] {
            if features.shape().last_axis() != embed_dim {
                let (op, expected) = ("remember", format!("[batch, {embed_dim}]"));
                let got = features.shape().clone();
                return Err(ocelli_tensor::Error::Shape { op, expected, got }.into());
            }
        }
        let first = m.next.tensor().values().first().copied().unwrap_or(0.0) as usize;
        for (queue, features) in [(&m.images, images), (&m.texts, texts)] {
            queue.update(|queue| {
                for (i, row) in features.values().chunks_exact(embed_dim.max(1)).enumerate() {
                    let column = (first + i) % columns;
                    for (axis, value) in row.iter().enumerate() {
                        queue[axis * columns + column] = *value;
                    }
                }
            });
        }
        let next = (first + images.shape()[0]) % columns.max(1);
        m.next.update(|n| n.fill(next as f32));
        Ok(())
    }
}

/// `alpha` of the copies' opinion, the softmax of each row, and the rest on the diagonal.
fn targets(similarities: &Tensor, alpha: f32) -> Result<Tensor> {
    let mut shares = similarities.values().to_vec();
    for (i, row) in shares.chunks_exact_mut(similarities.shape().last_axis().max(1)).enumerate() {
        softmax(row);
        row.iter_mut().for_each(|share| *share *= alpha);
        row[i] += 1.0 - alpha;
    }
    Ok(Tensor::from_slice(&shares, similarities.shape())?)
}

fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|v| *v = (*v - largest).exp());
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    row.iter_mut().for_each(|v| *v = (f64::from(*v) / sum) as f32);
}

/// How likely each other sample of the batch is drawn as the negative of a row (§3.2), `[batch, batch]`,
/// from similarities `[batch, batch + queue]`.
///
/// # Errors
/// If there are fewer columns than rows.
pub fn negative_weights(similarities: &Tensor) -> Result<Tensor> {
    let batch = similarities.shape()[0];
    let own = similarities.narrow(1, 0, batch)?;
    let mut weights = own.values().to_vec();
    for (i, row) in weights.chunks_exact_mut(batch.max(1)).enumerate() {
        softmax(row);
        row.iter_mut().for_each(|weight| *weight += LEAST_WEIGHT);
        row[i] = 0.0;
    }
    Ok(Tensor::from_slice(&weights, &[batch, batch])?)
}

/// The original code, beside the towers. Fine-tuned files call the place in the queues otherwise.
const ORIGINAL: &[Name] = &[
    copy("momentum.matching.image.*", "vision_proj_m.*"),
    copy("momentum.matching.text.*", "text_proj_m.*"),
    copy("temperature", "temp"),
    copy("queue.images", "image_queue"),
    copy("queue.texts", "text_queue"),
];

/// Name maps of what the original code writes for training alone; `next` is what it calls the oldest
/// column of the queues.
pub(super) fn momentum_names(next: &'static str) -> [Names; 4] {
    let tower = original_vit_names("visual_encoder_m.").under("momentum.vision.");
    let encoder = med::encoder_names("text_encoder_m.").under("momentum.encoder.");
    let next = copy("queue.next", next);
    [Names::family(ORIGINAL, &["idx_queue"]), Names::family(&[next], &[]), tower, encoder]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;
    use crate::language::med::MedConfig;
    use crate::systems::blip::BlipTokens;
    use crate::vision::vit::{Head, VitConfig};

    const QUEUE: usize = 3;

    fn model() -> (Blip, Parameters) {
        let vision = VitConfig {
            image_size: (8, 8),
            patch_size: 4,
            width: 8,
            depth: 1,
            heads: 2,
            mlp_dim: 16,
            head: Head::None,
            ..VitConfig::variant("B/16").unwrap()
        };
        let text = MedConfig {
            vocab: 12,
            context_length: 6,
            width: 8,
            depth: 1,
            heads: 2,
            mlp_dim: 16,
            ..MedConfig::base(8)
        };
        let config = BlipConfig {
            vision,
            encoder: Some(text.clone()),
            decoder: Some(MedConfig { is_decoder: true, ..text }),
            is_shared: true,
            embed_dim: Some(4),
            queue: Some(QUEUE),
            label_smoothing: SMOOTHING,
            momentum: MOMENTUM,
            alpha: ALPHA,
            tokens: BlipTokens { decode: 10, encode: 11, separator: 3, pad: 0 },
        };
        let b = Builder::random(5);
        let model = Blip::new(&config, &b);
        let parameters = b.finish().unwrap();
        parameters.iter().for_each(|p| p.set_trainable(true));
        model.freeze_copies(&parameters);
        (model, parameters)
    }

    fn values(parameters: &Parameters, name: &str) -> Vec<f32> {
        parameters.get(name).unwrap().tensor().values().to_vec()
    }

    #[test]
    fn every_part_learns_but_the_copies() {
        let (model, parameters) = model();
        let pixels: Vec<f32> = (0..2 * 3 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let pixels = Tensor::from_slice(&pixels, &[2, 3, 8, 8]).unwrap();
        let ids = [2, 5, 6, 3, 2, 7, 3, 0];
        let texts = Texts {
            ids: ids.into(),
            token_types: vec![0; 8].into(),
            mask: ids.map(|id| u8::from(id != 0)).into(),
            batch: 2,
        };
        let other: std::sync::Arc<[u32]> = [1, 0].into();
        let negatives = Negatives { images: other.clone(), texts: other };
        let step = model.pretrain(&pixels, &texts, ALPHA, &negatives).unwrap();
        assert_eq!(step.by_image.shape()[..], [2, 2 + QUEUE]);
        let gradients = step.loss().unwrap().backward().unwrap();
        for p in parameters.iter() {
            let learns = gradients.get(&p.tensor()).is_some();
            let is_copy = p.name().starts_with("momentum.");
            assert_eq!(learns, !is_copy && !p.is_buffer(), "{}", p.name());
        }
        // What encoder and decoder have in common is there once.
        assert!(parameters.get("decoder.blocks.0.attn.qkv.weight").is_some());
        assert!(parameters.get("decoder.blocks.0.cross.q.weight").is_none());
    }

    #[test]
    fn copies_follow_slowly_and_the_temperature_stays_in_its_range() {
        let (model, parameters) = model();
        let name = "matching.image.weight";
        let copy = format!("momentum.{name}");
        parameters.get(name).unwrap().update(|v| v.fill(1.0));
        parameters.get(&copy).unwrap().update(|v| v.fill(0.0));
        parameters.get("temperature").unwrap().update(|v| v.fill(2.0));
        model.follow(&parameters, 0.75);
        model.follow(&parameters, 0.75);
        assert!(values(&parameters, &copy).iter().all(|v| (v - 0.4375).abs() < 1e-6));
        assert_eq!(values(&parameters, "temperature"), [0.5]);
    }

    #[test]
    fn the_oldest_features_are_replaced() {
        let (model, parameters) = model();
        let features = |from: f32| {
            let rows: Vec<f32> = (0..8).map(|i| from + i as f32).collect();
            Tensor::from_slice(&rows, &[2, 4]).unwrap()
        };
        model.remember(&[features(10.0), features(20.0)]).unwrap();
        model.remember(&[features(30.0), features(40.0)]).unwrap();
        // Column by column 34, 14, 30: the second step began at the third and came round.
        assert_eq!(values(&parameters, "queue.images")[..QUEUE], [34.0, 14.0, 30.0]);
        assert_eq!(values(&parameters, "queue.texts")[..QUEUE], [44.0, 24.0, 40.0]);
        assert_eq!(values(&parameters, "queue.next"), [1.0]);
        assert!(model.remember(&[features(0.0), Tensor::zeros(&[2, 3])]).is_err());
    }

    #[test]
    fn targets_and_weights_are_those_of_the_paper() {
        let similarities = Tensor::from_slice(&[0.0, 0.0, 0.0, 0.0], &[1, 4]).unwrap();
        let targets = targets(&similarities, 0.4).unwrap();
        for (got, want) in targets.values().iter().zip([0.7, 0.1, 0.1, 0.1]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        let similarities = Tensor::from_slice(&[9.0, 1.0, 5.0, 1.0, 9.0, 5.0], &[2, 3]).unwrap();
        let weights = negative_weights(&similarities).unwrap();
        assert_eq!(weights.shape()[..], [2, 2]);
        let other = 1.0 / (1.0 + 8_f32.exp()) + LEAST_WEIGHT;
        for (got, want) in weights.values().iter().zip([0.0, other, other, 0.0]) {
            assert!((got - want).abs() < 1e-7, "{got} {want}");
        }
    }
}
