//! LiT: pictures and texts in one space, learned on towers that stay as they are.
//!
//! Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning", arXiv:2111.07991, §3.
//! A DINOv2 and a sentence BERT give features; a projection on each and the temperature learn by the
//! loss of CLIP.
//!
//! Differs from the paper: there the text tower learns as well. Here it is locked too, so that the
//! features of a data set are computed once and training takes minutes on a CPU.

use super::clip::Compared;
use crate::language::bert::{Bert, BertConfig, Texts};
use crate::vision::vit::{Head, Vit, VitConfig};
use crate::{Error, Result};
use ocelli_nn::layers::{LayerNorm, Linear};
use ocelli_nn::{Builder, Init, LoadError, Parameter, Parameters};
use ocelli_tensor::{Activation, Tensor, no_grad};
use serde::{Deserialize, Serialize};

/// Sizes of a LiT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LitConfig {
    /// Width of the joint space.
    pub embed_dim: usize,
    /// The projections of both towers.
    pub projection: Projection,
    /// The vision tower; its `depth` is the hidden state that features come from.
    pub vision: VitConfig,
    /// The text tower.
    pub text: BertConfig,
}

/// What is learned on a tower, behind a layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// A matrix.
    Linear,
    /// Two layers with this hidden width and GELU between.
    Mlp(usize),
}

impl LitConfig {
    /// A LiT on towers of these sizes, with features from hidden state `hidden_state` of the vision
    /// tower: after that many blocks. `None` if the tower has fewer blocks, or none are asked for.
    pub fn on_towers(
        vision: &VitConfig,
        hidden_state: usize,
        text: &BertConfig,
        embed_dim: usize,
        projection: Projection,
    ) -> Option<Self> {
        (1..=vision.depth).contains(&hidden_state).then(|| Self {
            embed_dim,
            projection,
            vision: VitConfig { depth: hidden_state, head: Head::None, ..vision.clone() },
            text: BertConfig { has_pooler: false, has_language_head: false, ..text.clone() },
        })
    }

    /// Values of a picture between tower and projection: class token and mean of the patches, one
    /// after the other.
    pub fn image_features(&self) -> usize {
        2 * self.vision.width
    }
}

/// A projection into the joint space.
#[derive(Debug)]
struct Projector {
    norm: LayerNorm,
    hidden: Option<Linear>,
    out: Linear,
}

impl Projector {
    fn new(b: &Builder, width: usize, embed_dim: usize, form: Projection) -> Self {
        let init = |width: usize| Init::Normal((width as f32).powf(-0.5));
        let (hidden, last) = match form {
            Projection::Linear => (None, width),
            Projection::Mlp(n) => {
                (Some(Linear::new(&b.at("hidden"), width, n, true, init(width))), n)
            }
        };
        Self {
            norm: LayerNorm::new(&b.at("norm"), width, 1e-6),
            hidden,
            out: Linear::new(&b.at("out"), last, embed_dim, false, init(last)),
        }
    }

    /// `[batch, width]` to `[batch, embed_dim]`.
    fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let mut x = self.norm.forward(features)?;
        if let Some(hidden) = &self.hidden {
            x = hidden.forward_with(&x, Activation::Gelu, None)?; // [batch, hidden]
        }
        Ok(self.out.forward(&x)?)
    }
}

/// LiT.
#[derive(Debug)]
pub struct Lit {
    config: LitConfig,
    vision: Vit,
    text: Bert,
    vision_head: Projector,
    text_head: Projector,
    logit_scale: Parameter,
}

impl Lit {
    /// A model whose parameters come from `b`; what learns is called `head.*` and `logit_scale`.
    pub fn new(config: &LitConfig, b: &Builder) -> Self {
        let (c, head) = (config, b.at("head"));
        let vision_features = c.image_features();
        let projector = |b, width| Projector::new(b, width, c.embed_dim, c.projection);
        Self {
            vision: Vit::new(&c.vision, &b.at("vision")),
            text: Bert::new(&c.text, &b.at("text")),
            vision_head: projector(&head.at("vision"), vision_features),
            text_head: projector(&head.at("text"), c.text.width),
            // ln(1 / 0.07), as in CLIP.
            logit_scale: b.parameter("logit_scale", &[], Init::Constant(2.659_26)),
            config: config.clone(),
        }
    }

    /// The sizes.
    pub fn config(&self) -> &LitConfig {
        &self.config
    }

    /// The logarithm of the temperature's inverse.
    pub fn logit_scale(&self) -> &Parameter {
        &self.logit_scale
    }

    /// What the locked vision tower sees in normalised `pixels` `[batch, 3, img_h, img_w]`: the class
    /// token and the mean of the patches before the last norm, `[batch, 2 width]`. Never on the tape.
    ///
    /// # Errors
    /// As for [`Vit::embed`].
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        no_grad(|| {
            let states = self.vision.hidden_states(pixels)?;
            let tokens = &states[states.len() - 1]; // [batch, 1 + patches, width]
            let class = tokens.select_tokens(&vec![0; tokens.shape()[0]])?; // [batch, width]
            Ok(Tensor::cat(&[&class, &tokens.mean_tokens(1)?], 1)?) // [batch, 2 width]
        })
    }

    /// What the locked text tower reads: the mean of each text's tokens, `[batch, width]`. Never on
    /// the tape.
    ///
    /// # Errors
    /// As for [`Bert::embed`].
    pub fn text_features(&self, texts: &Texts) -> Result<Tensor> {
        no_grad(|| self.text.sentences(texts))
    }

    /// Features of pictures in the joint space, `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// If the features have another width.
    pub fn project_images(&self, features: &Tensor) -> Result<Tensor> {
        self.vision_head.forward(features)
    }

    /// Features of texts in the joint space, `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// If the features have another width.
    pub fn project_texts(&self, features: &Tensor) -> Result<Tensor> {
        self.text_head.forward(features)
    }

    /// Normalised `pixels` `[batch, 3, img_h, img_w]` to `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// As for [`Lit::image_features`].
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Tensor> {
        self.project_images(&self.image_features(pixels)?)
    }

    /// Texts to `[batch, embed_dim]`, of any length.
    ///
    /// # Errors
    /// As for [`Lit::text_features`].
    pub fn encode_text(&self, texts: &Texts) -> Result<Tensor> {
        self.project_texts(&self.text_features(texts)?)
    }

    /// Pictures, texts and their cosines.
    ///
    /// # Errors
    /// As for the towers.
    pub fn compare(&self, pixels: &Tensor, texts: &Texts) -> Result<Compared> {
        let images = self.encode_image(pixels)?.l2_normalise()?;
        let texts = self.encode_text(texts)?.l2_normalise()?;
        let scale = self.logit_scale.tensor().item()?.exp();
        let logits = images.detach().linear(&texts.detach(), None)?.scale(scale)?; // [images, texts]
        Ok(Compared { images, texts, logits })
    }

    /// The contrastive loss of features that belong together by index.
    ///
    /// # Errors
    /// If the features have another width, or their numbers differ.
    pub fn loss(&self, image_features: &Tensor, text_features: &Tensor) -> Result<Tensor> {
        let images = self.project_images(image_features)?.l2_normalise()?;
        let texts = self.project_texts(text_features)?.l2_normalise()?;
        Ok(images.contrastive_loss(&texts, &self.logit_scale.tensor())?)
    }
}

/// Gives the towers of a LiT, whose parameters are `lit`, the values of the models that they are
/// taken from, and locks them.
///
/// # Errors
/// [`LoadError::Mismatch`] if a tower lacks a parameter or has one of another shape.
pub fn lock_towers(lit: &Parameters, vision: &Parameters, text: &Parameters) -> Result<()> {
    let (mut missing, mut misshaped) = (Vec::new(), Vec::new());
    for parameter in lit.iter() {
        let name = parameter.name();
        let (tower, rest) = match name.split_once('.') {
            Some(("vision", rest)) => (vision, rest),
            Some(("text", rest)) => (text, rest),
            _ => continue,
        };
        match tower.get(rest) {
            // Features mask no patch, so a tower may lack it.
            None if rest == "mask_token" => {}
            None => missing.push(name.to_owned()),
            Some(found) if found.shape() != parameter.shape() => {
                let (want, found) = (parameter.shape(), found.shape());
                misshaped.push(format!("{name} expected {want:?}, found {found:?}"));
            }
            Some(found) => parameter.replace(&found.tensor()),
        }
        parameter.set_trainable(false);
    }
    if missing.is_empty() && misshaped.is_empty() {
        return Ok(());
    }
    let file = "a tower of LiT".to_owned();
    let (unused, not_finite) = (Vec::new(), Vec::new());
    Err(Error::Load(LoadError::Mismatch { file, missing, misshaped, unused, not_finite }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;
    use ocelli_data::text::TokenBatch;

    fn towers() -> (VitConfig, BertConfig) {
        let vision = VitConfig {
            image_size: (28, 28),
            patch_size: 14,
            width: 8,
            depth: 3,
            heads: 2,
            mlp_dim: 16,
            has_layer_scale: true,
            head: Head::None,
            ..VitConfig::variant("S/14").unwrap()
        };
        let text = BertConfig {
            vocab: 11,
            context_length: 6,
            width: 6,
            depth: 2,
            heads: 2,
            mlp_dim: 12,
            has_pooler: true,
            ..BertConfig::variant("base").unwrap()
        };
        (vision, text)
    }

    fn lit(projection: Projection) -> (Lit, Parameters, Parameters) {
        let (vision, text) = towers();
        let (b_vision, b_text) = (Builder::random(1), Builder::random(2));
        let (_vision, _text) = (Vit::new(&vision, &b_vision), Bert::new(&text, &b_text));
        let (of_vision, of_text) = (b_vision.finish().unwrap(), b_text.finish().unwrap());
        let config = LitConfig::on_towers(&vision, 2, &text, 5, projection).unwrap();
        let b = Builder::random(3);
        let model = Lit::new(&config, &b);
        let parameters = b.finish().unwrap();
        lock_towers(&parameters, &of_vision, &of_text).unwrap();
        assert!(lock_towers(&parameters, &of_text, &of_vision).is_err());
        (model, parameters, of_vision)
    }

    fn inputs() -> (Tensor, Texts) {
        let pixels: Vec<f32> = (0..3 * 3 * 28 * 28).map(|i| (i as f32 * 0.37).sin()).collect();
        let tokens = TokenBatch {
            ids: vec![1, 5, 2, 0, 1, 7, 8, 2, 1, 2, 0, 0],
            attention_mask: vec![1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0],
            batch: 3,
            tokens: 4,
        };
        (Tensor::from_slice(&pixels, &[3, 3, 28, 28]).unwrap(), Texts::from(&tokens))
    }

    #[test]
    fn only_the_heads_and_the_temperature_learn() {
        for projection in [Projection::Linear, Projection::Mlp(7)] {
            let (model, parameters, _) = lit(projection);
            let (pixels, texts) = inputs();
            let images = model.image_features(&pixels).unwrap();
            let texts = model.text_features(&texts).unwrap();
            assert_eq!((&images.shape()[..], &texts.shape()[..]), (&[3, 16][..], &[3, 6][..]));
            let loss = model.loss(&images, &texts).unwrap();
            let grads = loss.backward().unwrap();
            for p in parameters.iter() {
                let learns = p.name().starts_with("head.") || p.name() == "logit_scale";
                assert_eq!(p.is_trainable(), learns, "{}", p.name());
                assert_eq!(grads.get(&p.tensor()).is_some(), learns, "{}", p.name());
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let (model, parameters, _) = lit(Projection::Mlp(7));
        let (pixels, texts) = inputs();
        let (images, texts) =
            (model.image_features(&pixels).unwrap(), model.text_features(&texts).unwrap());
        let loss = || model.loss(&images, &texts).unwrap();
        let grads = loss().backward().unwrap();
        for p in parameters.trainable() {
            let analytic = grads.get(&p.tensor()).unwrap().values()[0];
            let step = 1e-2;
            let at = |delta: f32| {
                p.update(|v| v[0] += delta);
                let value = loss().item().unwrap();
                p.update(|v| v[0] -= delta);
                value
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            assert!((analytic - numeric).abs() < 2e-3, "{}: {analytic} {numeric}", p.name());
        }
    }

    #[test]
    fn features_are_those_of_the_hidden_state() {
        let (model, parameters, of_vision) = lit(Projection::Linear);
        let (vision, _) = towers();
        let b = Builder::random(1);
        let whole = Vit::new(&vision, &b);
        assert_eq!(b.finish().unwrap().elements(), of_vision.elements());
        let (pixels, texts) = inputs();
        let state = &no_grad(|| whole.hidden_states(&pixels)).unwrap()[2]; // [3, 1 + 4, 8]
        let features = model.image_features(&pixels).unwrap();
        for (row, tokens) in features.values().chunks(16).zip(state.values().chunks(5 * 8)) {
            assert_eq!(row[..8], tokens[..8]);
            for i in 0..8 {
                let mean = (1..5).map(|t| tokens[8 * t + i]).sum::<f32>() / 4.0;
                assert!((row[8 + i] - mean).abs() < 1e-5);
            }
        }
        let compared = model.compare(&pixels, &texts).unwrap();
        assert_eq!(compared.logits.shape()[..], [3, 3]);
        assert!(parameters.get("vision.blocks.2.norm1.weight").is_none());
        assert!(LitConfig::on_towers(&vision, 4, &towers().1, 5, Projection::Linear).is_none());
    }
}
