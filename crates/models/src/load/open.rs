//! From files to a model with its values.

use super::{
    Family, Files, HeadCounts, Model, Opened, bert_config, blip_config, blip2_config, blip2_parts,
    causal_config, clip_config, compose, flamingo_config, gguf_config, llava_config,
    minigpt4_config, mplug_owl_config, nfnet_config, qwen_vl_config, t5_config, visualglm_config,
    vit_config, xcomposer_config,
};
use crate::Result;
use crate::language::bert::{self, Bert};
use crate::systems::clip::{self, Clip};
use crate::systems::lit::Lit;
use crate::vision::local_vit::LocalVit;
use crate::vision::resnet_v2::{self, HybridVit};
use crate::vision::vit::{self, Vit, VitConfig};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use std::sync::Arc;

impl Files {
    /// Builds the model and loads its weights. `heads` tells head counts that a file lacks.
    ///
    /// # Errors
    /// If the weights do not fit the configuration; everything that does not is listed.
    pub fn open(self, heads: HeadCounts) -> Result<Opened> {
        let weights = self.weights()?;
        self.open_whole(&Arc::new(weights), heads)
    }

    /// The model without its values, which are not read: to see what it is and what it will take.
    ///
    /// # Errors
    /// As for [`Files::open`], but of values.
    pub fn measure(&self, heads: HeadCounts) -> Result<Opened> {
        let weights = self.weights()?.unread();
        self.clone().open_whole(&Arc::new(weights), heads)
    }

    fn open_whole(self, weights: &Arc<Checkpoint>, heads: HeadCounts) -> Result<Opened> {
        let layers = self.layers.clone();
        let mut opened = self.open_weights(weights, heads)?;
        if opened.sources.is_empty() {
            opened.sources = compose::sources(&layers, weights, &opened.parameters, &opened.names);
        }
        Ok(opened)
    }

    pub(super) fn open_weights(
        self,
        weights: &Arc<Checkpoint>,
        heads: HeadCounts,
    ) -> Result<Opened> {
        let has = |name: &str| weights.info(name).is_some();
        let prefix = |name: &str, prefix: &'static str| {
            if has(&format!("{prefix}{name}")) { prefix } else { "" }
        };
        let file = self.config_file();
        let vit = |config: VitConfig, names: Names| -> Result<(Model, Parameters, Vec<Names>)> {
            let names = vec![names];
            let builder = Builder::load(Arc::clone(weights), names.clone());
            let model = Vit::new(&config, &builder);
            Ok((Model::Vit(Box::new(model)), builder.finish()?, names))
        };
        let clip = |config: &clip::ClipConfig,
                    names: Vec<Names>|
         -> Result<(Model, Parameters, Vec<Names>)> {
            let builder = Builder::load(Arc::clone(weights), names.clone());
            let model = Clip::new(config, &builder);
            Ok((Model::Clip(Box::new(model)), builder.finish()?, names))
        };
        let mut sources = Vec::new();
        let (model, parameters, names) = match self.family {
            Family::TransformersVit => {
                let mut config = self.vit_config()?;
                let prefix = prefix("embeddings.cls_token", "vit.");
                if config.head == vit::Head::Pooler && !has(&format!("{prefix}pooler.dense.weight"))
                {
                    config.head = vit::Head::None;
                }
                vit(config, vit::names(vit::TRANSFORMERS, prefix))?
            }
            Family::Dinov2 => {
                let prefix = prefix("embeddings.cls_token", "dinov2.");
                vit(self.vit_config()?, vit::names(vit::DINOV2, prefix))?
            }
            Family::TimmVit => {
                let config = self.vit_config()?;
                let norm = if has("fc_norm.weight") { "fc_" } else { "" };
                vit(config, vit::names(vit::TIMM, norm))?
            }
            Family::TimmHybrid => {
                let backbone = vit_config::backbone(&self.config, &file)?;
                let names = resnet_v2::timm_names();
                let builder = Builder::load(Arc::clone(weights), names.clone());
                let model = HybridVit::new(&backbone, &self.vit_config()?, &builder);
                (Model::Hybrid(Box::new(model)), builder.finish()?, names)
            }
            Family::JaxVit => {
                let config = vit_config::jax(weights, &self.path)?;
                let prefix = prefix("cls", "opt/target/");
                if let Some(backbone) = vit_config::jax_backbone(weights, &self.path)? {
                    let names = resnet_v2::jax_names(prefix);
                    let builder = Builder::load(Arc::clone(weights), names.clone());
                    let model = HybridVit::new(&backbone, &config, &builder);
                    (Model::Hybrid(Box::new(model)), builder.finish()?, names)
                } else {
                    vit(config, vit::names(vit::JAX, prefix))?
                }
            }
            Family::TransformersClip => {
                clip(&clip_config::transformers(&self.config, &file)?, clip::transformers_names())?
            }
            Family::OpenClip => {
                let prefix = prefix("positional_embedding", "text.");
                let config = clip_config::open_clip(&self.config, &file)?;
                let names = match config.vision {
                    clip::VisionConfig::TimmVit(_) => clip::open_clip_timm_names(prefix),
                    _ => clip::openai_names(prefix),
                };
                clip(&config, names)?
            }
            Family::OpenAiClip => {
                let config = clip_config::openai(weights, &self.path, heads)?;
                clip_config::check_openai_heads(&config, &self.path, heads)?;
                clip(&config, clip::openai_names(""))?
            }
            Family::TransformersBlip | Family::OriginalBlip => {
                let is_original = self.family == Family::OriginalBlip;
                blip_config::open(is_original, &self.config, weights, &file)?
            }
            Family::Bert => {
                let mut config = bert_config::transformers(&self.config, &file)?;
                let prefix = prefix("embeddings.word_embeddings.weight", "bert.");
                config.has_pooler = has(&format!("{prefix}pooler.dense.weight"));
                config.has_language_head = has("cls.predictions.transform.dense.weight");
                let has_old_norms = has(&format!("{prefix}embeddings.LayerNorm.gamma"));
                let names = bert::names(prefix, has_old_norms);
                let builder = Builder::load(Arc::clone(weights), names.clone());
                let model = Bert::new(&config, &builder);
                (Model::Bert(Box::new(model)), builder.finish()?, names)
            }
            Family::EvaVit
            | Family::LavisClipVit
            | Family::QFormer
            | Family::TransformersBlip2
            | Family::InstructBlip => {
                blip2_config::open(self.family, &self.config, weights, &file)?
            }
            Family::LavisBlip2 => {
                let (model, parameters, names, parts) =
                    blip2_parts::open(&self.config, weights, &file)?;
                sources = parts;
                (model, parameters, names)
            }
            Family::Llama | Family::Gpt2 | Family::Opt | Family::GptNeox | Family::Mpt => {
                causal_config::open(self.family, &self.config, weights, &file)?
            }
            Family::Llava => llava_config::open(&self.config, weights, &file)?,
            Family::MiniGpt4 => minigpt4_config::open(&self.config, weights, &file)?,
            Family::MplugOwl => mplug_owl_config::open(&self.config, weights, &file)?,
            Family::QwenVl => qwen_vl_config::open(&self.config, weights, &file)?,
            Family::VisualGlm => visualglm_config::open(&self.config, weights, &file)?,
            Family::XComposer => xcomposer_config::open(&self.config, weights, &file)?,
            Family::TimmNfNet => nfnet_config::open(&self.config, weights, &file)?,
            Family::Flamingo => flamingo_config::open(&self.config, weights, &file)?,
            Family::FlamingoParts => flamingo_config::open_parts(&self.config, weights, &file)?,
            Family::T5 => t5_config::open(&self.config, weights, &file)?,
            Family::Gguf => gguf_config::open(&self.config, weights, &file)?,
            Family::Ocelli => {
                let names = vec![Names::ours()];
                if self.is_own("local_vit") {
                    let builder = Builder::load(Arc::clone(weights), names.clone());
                    let model = LocalVit::new(&self.own_config("local_vit")?, &builder);
                    (Model::LocalVit(Box::new(model)), builder.finish()?, names)
                } else if self.is_own("lit") {
                    let builder = Builder::load(Arc::clone(weights), names.clone());
                    let model = Lit::new(&self.own_config("lit")?, &builder);
                    (Model::Lit(Box::new(model)), builder.finish()?, names)
                } else {
                    clip(&self.clip_config()?, names)?
                }
            }
        };
        Ok(Opened { model, parameters, names, family: self.family, path: self.path, sources })
    }
}
