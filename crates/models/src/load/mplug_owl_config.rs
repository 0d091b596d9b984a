//! Configurations of mPLUG-Owl and of its abstractor.

use super::Model;
use super::causal_config;
use super::fields::Fields;
use crate::Result;
use crate::connector::abstractor::{self, Abstractor, AbstractorConfig};
use crate::systems::mplug_owl::{self, MplugOwl, MplugOwlConfig};
use crate::vision::clip_vit::ClipVitConfig;
use crate::vision::position::PositionRule;
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Axis, Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A tensor that an abstractor alone has.
pub(super) const ABSTRACTOR: &str = "encoder.layers.0.crossattention.normk.weight";

/// Side of the pictures where nothing is said, in pixels.
const USUAL_SIZE: usize = 224;

/// Builds the model of a directory, whole or the abstractor alone.
pub(super) fn open(
    config: &Value,
    weights: &Arc<Checkpoint>,
    file: &Path,
) -> Result<(Model, Parameters, Vec<Names>)> {
    let f = Fields::new(config, file);
    if weights.info(ABSTRACTOR).is_some() {
        let names = vec![abstractor::names("")];
        let builder = Builder::load(Arc::clone(weights), names.clone());
        let text_width = f.size("language_hidden_size", Some(4096))?;
        let model = Abstractor::new(&abstractor(&f, &f, text_width)?, &builder);
        return Ok((Model::Abstractor(Box::new(model)), builder.finish()?, names));
    }
    let text = causal_config::llama(&f.section("text_config"))?;
    let sizes = MplugOwlConfig {
        vision: tower(&f.section("vision_config"))?,
        abstractor: abstractor(&f, &f.section("visual_abstractor_config"), text.width)?,
        text,
    };
    if sizes.abstractor.memory_width != sizes.vision.width {
        let [reads, has] = [sizes.abstractor.memory_width, sizes.vision.width];
        let reason = format!("the abstractor reads {reads} values a token, the tower gives {has}");
        return Err(f.error("visual_abstractor_config.encoder_hidden_size", reason));
    }
    let names = mplug_owl::names(&sizes);
    let axis = |part, length: usize, name: &str, field| Axis {
        part,
        length,
        symbol: format!("{name}={length}"),
        field,
    };
    let axes = vec![
        axis("abstractor.", sizes.text.width, "hidden", "text_config.hidden_size"),
        axis("abstractor.", sizes.abstractor.queries, "queries", "num_query_tokens"),
    ];
    let builder = Builder::load_with(Arc::clone(weights), names.clone(), axes);
    let model = MplugOwl::new(&sizes, &builder);
    Ok((Model::MplugOwl(Box::new(model)), builder.finish()?, names))
}

/// Height and width of the pictures.
pub(super) fn image_size(config: &Value, file: &Path) -> Result<(usize, usize)> {
    Fields::new(config, file).section("vision_config").sides("image_size", USUAL_SIZE)
}

fn tower(f: &Fields) -> Result<ClipVitConfig> {
    let width = f.size("hidden_size", Some(1024))?;
    Ok(ClipVitConfig {
        image_size: f.sides("image_size", USUAL_SIZE)?,
        patch_size: f.size("patch_size", Some(14))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(24))?,
        heads: f.heads("num_attention_heads", width, Some(16))?,
        mlp_dim: f.size("intermediate_size", Some(4096))?,
        quick_gelu: match f.activation("hidden_act", "quick_gelu")? {
            Activation::QuickGelu => true,
            Activation::Gelu => false,
            _ => return Err(f.error("hidden_act", "expected quick_gelu or gelu")),
        },
        norm_eps: f.epsilon("layer_norm_eps", 1e-6)?,
        position_rule: PositionRule::Transformers,
    })
}

/// The abstractor that `f` describes; `root` counts the queries.
fn abstractor(root: &Fields, f: &Fields, text_width: usize) -> Result<AbstractorConfig> {
    let usual = AbstractorConfig::base(1024, text_width);
    let width = f.size("hidden_size", Some(usual.width))?;
    Ok(AbstractorConfig {
        queries: root.size("num_query_tokens", Some(usual.queries))?,
        width,
        depth: f.blocks("num_hidden_layers", Some(usual.depth))?,
        heads: f.heads("num_attention_heads", width, Some(usual.heads))?,
        mlp_dim: f.size("intermediate_size", Some(usual.mlp_dim))?,
        mlp_norm_eps: f.epsilon("layer_norm_eps", 1e-6)?,
        memory_width: f.size("encoder_hidden_size", Some(usual.memory_width))?,
        text_width,
    })
}
