//! The model of a run: built at random or from a checkpoint, with what its pictures go through.

use crate::config::{Family, ModelConfig, ResNetSizes, TextSizes, VisionSizes};
use crate::parts::Part;
use crate::towers::{OnTowers, on_absent_towers, on_towers};
use crate::{Error, Result};
use ocelli_data::image::Processor;
use ocelli_models::language::clip_text::{ClipTextConfig, EndToken};
use ocelli_models::systems::clip::{Clip, ClipConfig, VisionConfig};
use ocelli_models::vision::clip_resnet::ModifiedResNetConfig;
use ocelli_models::vision::clip_vit::ClipVitConfig;
use ocelli_models::vision::local_vit::{LocalVit, LocalVitConfig, Neighbourhood};
use ocelli_models::vision::position::PositionRule;
use ocelli_models::vision::resnet_v2::{HybridVit, HybridVitConfig};
use ocelli_models::vision::vit::{Head, Vit, VitConfig};
use ocelli_models::{Files, HeadCounts, Model, Pass, Published, published};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::Tensor;
use serde_json::{Value, json};
use std::path::Path;

/// A model that learns.
#[derive(Debug)]
pub struct Learner {
    /// The layers.
    pub model: Model,
    /// All parameters.
    pub parameters: Parameters,
    /// How pictures are prepared when the model is used.
    pub processor: Processor,
    /// The same as a file of transformers has it.
    preprocessing: Value,
}

impl Learner {
    /// The model that `config` describes, new parameters from `builder`. `classes` and `vocab` are
    /// those of the data, for models that need them.
    ///
    /// # Errors
    /// If the sizes are no model, or the checkpoint to start from does not fit.
    pub fn new(
        config: &ModelConfig,
        classes: usize,
        vocab: usize,
        builder: &Builder,
    ) -> Result<Self> {
        let (mut start, mut channels) = (None, None);
        if let Some(path) = &config.from {
            let files = Files::find(path, None)?;
            let processor = files.processor()?;
            channels = Some((processor.mean, processor.std));
            start = Some((path, files.open(HeadCounts::default())?));
        }
        let old = start.as_ref().map(|(_, opened)| &opened.model);
        let model = match config.family {
            Family::Vit => {
                let mut sizes = match old {
                    Some(Model::Vit(vit)) => {
                        let c = vit.config();
                        check_variant(config, |name| {
                            let v = VitConfig::variant(name)?;
                            let sizes = |c: &VitConfig| (c.width, c.depth, c.patch_size);
                            Some(sizes(&v) == sizes(c))
                        })?;
                        c.clone()
                    }
                    Some(other) => return Err(unfit_start(other, "a ViT")),
                    None => vit_sizes(config)?,
                };
                set_size(&mut sizes.image_size, sizes.patch_size, config.image_size)?;
                sizes.head = match sizes.head {
                    Head::AverageClasses(_) => Head::AverageClasses(classes),
                    _ => Head::Classes(classes),
                };
                Model::Vit(Box::new(Vit::new(&sizes, builder)))
            }
            Family::Hybrid => {
                let mut sizes = match old {
                    Some(Model::Hybrid(hybrid)) => {
                        let c = hybrid.config();
                        check_variant(config, |name| {
                            let v = HybridVitConfig::variant(name)?;
                            let sizes = |c: &VitConfig| (c.width, c.depth);
                            Some(v.backbone == c.backbone && sizes(&v.vit) == sizes(&c.vit))
                        })?;
                        c.clone()
                    }
                    Some(other) => return Err(unfit_start(other, "a hybrid ViT")),
                    None => hybrid_sizes(config)?,
                };
                set_size(&mut sizes.vit.image_size, 1, config.image_size)?;
                sizes.vit.head = Head::Classes(classes);
                Model::Hybrid(Box::new(HybridVit::new(&sizes.backbone, &sizes.vit, builder)))
            }
            Family::LocalVit => {
                let mut sizes = match old {
                    Some(Model::LocalVit(vit)) => vit.config().clone(),
                    Some(other) => return Err(unfit_start(other, "a local ViT")),
                    None => local_vit_sizes(config)?,
                };
                set_size(&mut sizes.image_size, sizes.patch_size, config.image_size)?;
                sizes.classes = classes;
                Model::LocalVit(Box::new(LocalVit::new(&sizes, builder)))
            }
            Family::Clip => {
                let mut sizes = match old {
                    Some(Model::Clip(clip)) => {
                        let c = clip.config();
                        check_variant(config, |name| {
                            let v = ClipConfig::variant(name)?;
                            let sizes = |c: &ClipConfig| (c.embed_dim, c.text.width, c.text.depth);
                            Some(sizes(&v) == sizes(c) && is_same_tower(&v.vision, &c.vision))
                        })?;
                        c.clone()
                    }
                    Some(other) => return Err(unfit_start(other, "a CLIP")),
                    None => clip_sizes(config, vocab)?,
                };
                match &mut sizes.vision {
                    VisionConfig::TimmVit(_) => {
                        let problem = "has a tower of timm, which is not trained here; start from \
                                       a CLIP with a tower of its own"
                            .to_owned();
                        return Err(Error::Unfit { key: "model.from", problem });
                    }
                    VisionConfig::Vit(vit) => {
                        set_size(&mut vit.image_size, vit.patch_size, config.image_size)?;
                    }
                    VisionConfig::ResNet(resnet) => {
                        resnet.image_size = config.image_size.unwrap_or(resnet.image_size);
                    }
                }
                Model::Clip(Box::new(Clip::new(&sizes, builder)))
            }
            Family::Lit => {
                let OnTowers { model, parameters, channels } = on_towers(config, builder)?;
                return Self::prepared(config, Model::Lit(Box::new(model)), parameters, channels);
            }
        };
        let parameters = builder.clone().finish()?;
        if let Some((path, opened)) = &start {
            take_over(&parameters, &model, &opened.parameters, &opened.model, path)?;
        }
        let channels = channels.unwrap_or_else(|| family_channels(config.family));
        Self::prepared(config, model, parameters, channels)
    }

    /// A LiT whose towers are not there, without values: for a plan.
    ///
    /// # Errors
    /// If the sizes are no LiT.
    pub(crate) fn on_absent_towers(config: &ModelConfig) -> Result<Self> {
        let OnTowers { model, parameters, channels } = on_absent_towers(config)?;
        Self::prepared(config, Model::Lit(Box::new(model)), parameters, channels)
    }

    /// With its preprocessing, by the channels of the recipe or else these.
    fn prepared(
        config: &ModelConfig,
        model: Model,
        parameters: Parameters,
        (mean, std): ([f32; 3], [f32; 3]),
    ) -> Result<Self> {
        let channels = (config.mean.unwrap_or(mean), config.std.unwrap_or(std));
        let preprocessing = preprocessing(&model, channels);
        let processor = Processor::from_hf_json(&preprocessing.to_string())
            .map_err(|e| Error::Unfit { key: "model.image_size", problem: e.to_string() })?;
        Ok(Self { model, parameters, processor, preprocessing })
    }

    /// Logits `[batch, classes]` of a classifier for normalised `pixels` `[batch, 3, img_h, img_w]`.
    ///
    /// # Errors
    /// If the size of the pictures does not suit the model, or it is no classifier.
    pub fn logits(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        Ok(match &self.model {
            Model::Vit(model) => model.forward_by(pixels, pass)?,
            Model::Hybrid(model) => model.forward_by(pixels, pass)?,
            Model::LocalVit(model) => model.forward_by(pixels, pass)?,
            other => {
                let problem = format!("{} is no classifier", other.kind());
                return Err(Error::Unfit { key: "model.family", problem });
            }
        })
    }

    /// Side of the square input, in pixels.
    pub fn image_size(&self) -> usize {
        image_size(&self.model)
    }

    /// The model's folder in the layout of its family; `classes` are the names of a classifier's
    /// classes.
    pub fn published(&self, classes: &[String]) -> Published {
        let is_classifier = !matches!(self.model, Model::Clip(_) | Model::Lit(_));
        let classes = if is_classifier { classes } else { &[] };
        published(&self.model, classes, &self.preprocessing)
    }

    /// The processor's file of transformers.
    pub fn preprocessing(&self) -> &Value {
        &self.preprocessing
    }
}

fn unfit_start(found: &Model, needed: &str) -> Error {
    let problem = format!("holds {}, not {needed}; change model.family", found.kind());
    Error::Unfit { key: "model.from", problem }
}

/// Makes a square input of `side` pixels.
fn set_size(size: &mut (usize, usize), patch: usize, side: Option<usize>) -> Result<()> {
    let side = side.unwrap_or(size.0);
    if side == 0 || !side.is_multiple_of(patch.max(1)) {
        let problem = format!("{side} is no multiple of the patch of {patch} pixels");
        return Err(Error::Unfit { key: "model.image_size", problem });
    }
    *size = (side, side);
    Ok(())
}

fn unknown_variant(name: &str, examples: &str) -> Error {
    let problem = format!("{name:?} is no published size; use one like {examples}");
    Error::Unfit { key: "model.variant", problem }
}

/// A checkpoint to start from must be of the variant that the recipe names beside it, if it does.
fn check_variant(config: &ModelConfig, fits: impl Fn(&str) -> Option<bool>) -> Result<()> {
    match config.variant.as_deref().map(|name| (name, fits(name))) {
        None | Some((_, Some(true))) => Ok(()),
        Some((name, None)) => Err(unknown_variant(name, "B/16 or ViT-B/32")),
        Some((name, Some(false))) => {
            let problem = format!("has other sizes than {name}; change model.variant");
            Err(Error::Unfit { key: "model.from", problem })
        }
    }
}

/// Whether towers differ in nothing but the size of the input and how it was counted.
fn is_same_tower(a: &VisionConfig, b: &VisionConfig) -> bool {
    match (a, b) {
        (VisionConfig::Vit(a), VisionConfig::Vit(b)) => {
            (a.patch_size, a.width, a.depth) == (b.patch_size, b.width, b.depth)
        }
        (VisionConfig::ResNet(a), VisionConfig::ResNet(b)) => {
            (a.layers, a.width) == (b.layers, b.width)
        }
        _ => false,
    }
}

/// The width of a head must be whole.
fn check_heads(width: usize, heads: usize, key: &'static str) -> Result<()> {
    if heads == 0 || !width.is_multiple_of(heads) {
        let problem = format!("{width} is no multiple of {heads} heads");
        return Err(Error::Unfit { key, problem });
    }
    Ok(())
}

fn vision(config: &ModelConfig) -> Result<&VisionSizes> {
    let missing = || Error::Unfit { key: "model.vision", problem: "give the sizes".to_owned() };
    let sizes = config.vision.as_ref().ok_or_else(missing)?;
    check_heads(sizes.width, sizes.heads, "model.vision.width")?;
    if sizes.patch_size == 0 {
        let problem = "0 is no size of a patch".to_owned();
        return Err(Error::Unfit { key: "model.vision.patch_size", problem });
    }
    Ok(sizes)
}

fn vit_sizes(config: &ModelConfig) -> Result<VitConfig> {
    if let Some(name) = &config.variant {
        return VitConfig::variant(name).ok_or_else(|| unknown_variant(name, "S/16 or B/32"));
    }
    let VisionSizes { patch_size, width, depth, heads, mlp_dim } = *vision(config)?;
    Ok(VitConfig {
        image_size: (224, 224),
        patch_size,
        channels: 3,
        width,
        depth,
        heads,
        mlp_dim: mlp_dim.unwrap_or(4 * width),
        norm_eps: 1e-6,
        qkv_bias: true,
        has_class_token: true,
        has_layer_scale: false,
        position_rule: PositionRule::Timm,
        head: Head::None,
    })
}

fn hybrid_sizes(config: &ModelConfig) -> Result<HybridVitConfig> {
    if let Some(name) = &config.variant {
        return HybridVitConfig::variant(name).ok_or_else(|| unknown_variant(name, "R50+ViT-B/16"));
    }
    let backbone = config.backbone.clone().ok_or_else(|| Error::Unfit {
        key: "model.backbone",
        problem: "give the sizes of the ResNet".to_owned(),
    })?;
    // The inner channels of a bottleneck are a quarter of its outer ones.
    let divides = |n: usize, by: usize| n > 0 && by > 0 && n.is_multiple_of(by);
    let fits = divides(backbone.stem_channels, backbone.groups)
        && backbone.channels.iter().all(|n| divides(*n, 4 * backbone.groups))
        && backbone.channels.len() == backbone.layers.len()
        && !backbone.layers.contains(&0)
        && (1..=8).contains(&backbone.layers.len());
    if !fits {
        let problem = "give as many channels as layers, none of them 0; the groups must divide the                        channels of the stem and a quarter of the others"
            .to_owned();
        return Err(Error::Unfit { key: "model.backbone", problem });
    }
    let vit = vit_sizes(config)?;
    if vit.patch_size != 1 {
        let problem = "a patch of a hybrid is one position of the feature map; set it to 1";
        let problem = problem.to_owned();
        return Err(Error::Unfit { key: "model.vision.patch_size", problem });
    }
    Ok(HybridVitConfig { backbone, vit })
}

fn local_vit_sizes(config: &ModelConfig) -> Result<LocalVitConfig> {
    let VisionSizes { patch_size, width, depth, heads, mlp_dim } = *vision(config)?;
    check_heads(width, 2 * heads, "model.vision.width")?;
    let neighbourhood = config.neighbourhood.ok_or_else(|| Error::Unfit {
        key: "model.neighbourhood",
        problem: "give it as \"axes\" or { window = 7 }".to_owned(),
    })?;
    if matches!(neighbourhood, Neighbourhood::Window(side) if side % 2 == 0) {
        let problem = "the side of a window must be odd".to_owned();
        return Err(Error::Unfit { key: "model.neighbourhood", problem });
    }
    Ok(LocalVitConfig {
        image_size: (224, 224),
        patch_size,
        width,
        depth,
        heads,
        mlp_dim: mlp_dim.unwrap_or(4 * width),
        neighbourhood,
        classes: 0,
    })
}

fn clip_sizes(config: &ModelConfig, vocab: usize) -> Result<ClipConfig> {
    if let Some(name) = &config.variant {
        let mut sizes =
            ClipConfig::variant(name).ok_or_else(|| unknown_variant(name, "ViT-B/32 or RN50"))?;
        sizes.text.vocab = vocab;
        return Ok(sizes);
    }
    let vision = match &config.resnet {
        Some(sizes) => resnet_sizes(sizes)?,
        None => clip_vit_sizes(vision(config)?),
    };
    let missing = |key| Error::Unfit { key, problem: "give the size".to_owned() };
    let text = config.text.as_ref().ok_or_else(|| missing("model.text"))?;
    let TextSizes { context_length, width, depth, heads, mlp_dim } = *text;
    check_heads(width, heads, "model.text.width")?;
    let text = ClipTextConfig {
        vocab,
        context_length,
        width,
        depth,
        heads,
        mlp_dim: mlp_dim.unwrap_or(4 * width),
        quick_gelu: false,
        norm_eps: 1e-5,
        end_token: EndToken::LargestId,
    };
    let embed_dim = config.embed_dim.ok_or_else(|| missing("model.embed_dim"))?;
    Ok(ClipConfig { embed_dim, vision, text })
}

/// A ResNet tower; heads of its pooling are 64 wide, as in the published ones.
fn resnet_sizes(sizes: &ResNetSizes) -> Result<VisionConfig> {
    let ResNetSizes { layers, width } = *sizes;
    if width < 2 || width % 2 == 1 || layers.contains(&0) {
        let problem = "give an even width and at least one block a stage".to_owned();
        return Err(Error::Unfit { key: "model.resnet", problem });
    }
    let heads = width / 2;
    Ok(VisionConfig::ResNet(ModifiedResNetConfig { layers, width, heads, image_size: 224 }))
}

fn clip_vit_sizes(sizes: &VisionSizes) -> VisionConfig {
    let VisionSizes { patch_size, width, depth, heads, mlp_dim } = *sizes;
    VisionConfig::Vit(ClipVitConfig {
        image_size: (224, 224),
        patch_size,
        width,
        depth,
        heads,
        mlp_dim: mlp_dim.unwrap_or(4 * width),
        quick_gelu: false,
        norm_eps: 1e-5,
        position_rule: PositionRule::Timm,
    })
}

fn image_size(model: &Model) -> usize {
    match model {
        Model::Vit(vit) => vit.config().image_size.0,
        Model::Hybrid(hybrid) => hybrid.image_size.0,
        Model::LocalVit(vit) => vit.config().image_size.0,
        Model::Clip(clip) => clip.config().vision.image_size().0,
        Model::Lit(lit) => lit.config().vision.image_size.0,
        _ => 0,
    }
}

/// The table of positions of a Vision Transformer: its rule, the tokens before the patches, the grid.
fn positions(model: &Model) -> Option<(PositionRule, usize, (usize, usize))> {
    let of_vit = |c: &VitConfig| {
        Some((c.position_rule, usize::from(c.has_class_token), c.grid(c.image_size)))
    };
    match model {
        Model::Vit(vit) => of_vit(vit.config()),
        Model::Hybrid(hybrid) => of_vit(hybrid.vit.config()),
        Model::Clip(clip) => match &clip.config().vision {
            VisionConfig::Vit(c) => Some((c.position_rule, 1, c.grid(c.image_size))),
            VisionConfig::ResNet(_) | VisionConfig::TimmVit(_) => None,
        },
        _ => None,
    }
}

/// Gives the parameters of `new` the values of `old`. The position table is resampled; a classifier
/// of other classes stays new.
fn take_over(
    new: &Parameters,
    new_model: &Model,
    old: &Parameters,
    old_model: &Model,
    path: &Path,
) -> Result<()> {
    let mut problems = Vec::new();
    for parameter in new.iter() {
        let name = parameter.name();
        let (expected, found) = (parameter.shape(), old.get(name).map(|p| (p.shape(), p.tensor())));
        match found {
            Some((shape, tensor)) if shape == expected => parameter.replace(&tensor),
            _ if Part::of(parameter) == Part::Head => {}
            Some((_, tensor))
                if ["position", "vision.position", "vit.position"].contains(&name) =>
            {
                let (Some((rule, prefix, from)), Some((_, _, to))) =
                    (positions(old_model), positions(new_model))
                else {
                    problems.push(format!("{name} cannot be resampled"));
                    continue;
                };
                parameter.replace(&rule.resample(&tensor, prefix, from, to)?);
            }
            Some((shape, _)) => {
                problems.push(format!("{name} has {shape:?}, expected {expected:?}"));
            }
            None => problems.push(format!("{name} is missing")),
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Start { path: path.to_path_buf(), problems })
}

/// Mean and standard deviation of the channels that published models of a family use.
fn family_channels(family: Family) -> ([f32; 3], [f32; 3]) {
    match family {
        Family::Vit | Family::Hybrid | Family::LocalVit => ([0.5; 3], [0.5; 3]),
        Family::Clip | Family::Lit => {
            let published = Processor::openai(224);
            (published.mean, published.std)
        }
    }
}

/// The original preprocessing of the family: CLIP crops the middle, and LiT with it; ViT squeezes.
fn preprocessing(model: &Model, (mean, std): ([f32; 3], [f32; 3])) -> Value {
    let side = image_size(model);
    let mut all = json!({
        "do_convert_rgb": true,
        "do_resize": true,
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": mean, "image_std": std,
    });
    let square = json!({ "height": side, "width": side });
    if matches!(model, Model::Clip(_) | Model::Lit(_)) {
        all["image_processor_type"] = json!("CLIPImageProcessor");
        (all["size"], all["resample"]) = (json!({ "shortest_edge": side }), json!(3));
        (all["do_center_crop"], all["crop_size"]) = (json!(true), square);
    } else {
        all["image_processor_type"] = json!("ViTImageProcessor");
        (all["size"], all["resample"]) = (square, json!(2));
    }
    all
}
