//! A BLIP-2 of LAVIS, composed: its files hold what was trained, the frozen tower and the frozen
//! language model lie beside them.

use super::blip2_config::{self, Sizes};
use super::fields::Fields;
use super::{Model, Source, read_json};
use crate::language::{llama, opt, t5};
use crate::systems::blip2::{self, Blip2, Blip2Config, TowerConfig};
use crate::systems::blip2_writing::{LanguageConfig, WritingConfig};
use crate::vision::eva_vit;
use crate::{Error, Result};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::Activation;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of the frozen tower that are looked for beside the trained parts.
pub(super) const TOWERS: [&str; 3] = ["eva_vit_g.pth", "clip_vit_L.pth", "vision_tower"];
/// Directory of the frozen language model beside them.
pub(super) const LANGUAGE: &str = "language_model";
/// What LAVIS ends the answers of an OPT with: the id of a line's end.
const OPT_NEWLINE: u32 = 50_118;

/// A model and where its parts come from.
pub(super) type Composed = (Model, Parameters, Vec<Names>, Vec<Source>);

/// A frozen part in a file of its own.
struct Frozen<C> {
    config: C,
    weights: Arc<Checkpoint>,
    names: Vec<Names>,
    path: PathBuf,
}

/// Builds the model of trained parts beside `file`, the place of a configuration.
pub(super) fn open(config: &Value, weights: &Arc<Checkpoint>, file: &Path) -> Result<Composed> {
    let dir = file.parent().unwrap_or(Path::new("."));
    let has = |name: &str| weights.info(name).is_some();
    let (f, sizes) = (Fields::new(config, file), Sizes::new(weights, file));
    let prefix = "visual_encoder.";
    let (vision, tower) = if has("visual_encoder.conv1.weight") {
        (TowerConfig::Clip(sizes.clip(prefix, &f.section("vit"))?), None)
    } else if has("visual_encoder.pos_embed") {
        (TowerConfig::Eva(sizes.eva(prefix, &f.section("vit"))?), None)
    } else {
        let tower = frozen_tower(dir, &f, weights)?;
        (tower.config.clone(), Some(tower))
    };
    let projects = |name: &&&str| has(&format!("{name}.weight"));
    let language = match blip2::LAVIS_PROJECTIONS.iter().find(projects) {
        Some(projection) => Some(frozen_language(dir, projection, weights)?),
        None => None,
    };
    let writing = language.as_ref().map(|part| part.config.clone());
    let config = sizes.blip2(&f, vision, writing)?;
    let (model, parameters, names, sources) = compose(&config, weights, tower, language)?;
    let model = blip2_config::with_instructions(model, dir)?;
    Ok((Model::Blip2(Box::new(model)), parameters, names, sources))
}

fn compose(
    config: &Blip2Config,
    weights: &Arc<Checkpoint>,
    tower: Option<Frozen<TowerConfig>>,
    language: Option<Frozen<WritingConfig>>,
) -> Result<(Blip2, Parameters, Vec<Names>, Vec<Source>)> {
    let mut names = blip2::lavis_names(config, tower.is_none());
    let trained = Builder::load(Arc::clone(weights), names.clone());
    let file = weights.file_of("query_tokens").map(Path::to_owned).unwrap_or_default();
    let part = |part, path: &Path| Source { part, path: path.to_owned() };
    let mut sources = vec![part("qformer", &file)];
    let mut apart = |part, frozen: Option<(Arc<Checkpoint>, Vec<Names>, PathBuf)>| {
        let Some((weights, own, path)) = frozen else { return trained.clone() };
        sources.push(Source { part, path });
        names.extend(own.clone());
        Builder::load(weights, own)
    };
    let vision = apart("vision", tower.map(|t| (t.weights, t.names, t.path)));
    let spoken = apart("language", language.map(|l| (l.weights, l.names, l.path)));
    if sources.iter().all(|s| s.part != "vision") {
        sources.push(part("vision", &file));
    }
    let model = Blip2::from_parts(config, &trained, &vision.at("vision"), &spoken.at("language"));
    let mut parameters = trained.finish()?;
    for builder in [vision, spoken] {
        // A part of the trained file has been finished with it, and nothing is left in it.
        parameters = parameters.and(&builder.finish()?);
    }
    Ok((model, parameters, names, sources))
}

/// The tower, without its last block, which no user of it runs.
fn frozen_tower(dir: &Path, f: &Fields, trained: &Checkpoint) -> Result<Frozen<TowerConfig>> {
    let found = TOWERS.iter().map(|name| dir.join(name)).find(|path| path.exists());
    let path = found.ok_or_else(|| {
        let (eva, clip) = (TOWERS[0], TOWERS[1]);
        f.error(
            "visual_encoder",
            format!(
                "the frozen tower is not part of this checkpoint and not beside it; fetch {eva} \
                 (or {clip}) and put it into {}",
                dir.display()
            ),
        )
    })?;
    let weights = Arc::new(Checkpoint::open(&path)?.as_part_of(trained));
    let sizes = Sizes::new(&weights, &path);
    let nothing = Value::Null;
    let f = Fields::new(&nothing, &path);
    if weights.info("conv1.weight").is_some() {
        let mut config = sizes.clip("", &f)?;
        config.depth = config.depth.saturating_sub(1).max(1);
        let last = format!("transformer.resblocks.{}", config.depth);
        let unused = ["ln_post.*", "proj"].map(str::to_owned).into_iter().chain(below(&last));
        let names = vec![blip2::lavis_clip_names("").ignoring(unused).under("vision.")];
        return Ok(Frozen { config: TowerConfig::Clip(config), weights, names, path });
    }
    let mut config = sizes.eva("", &f)?;
    config.depth = config.depth.saturating_sub(1).max(1);
    let unused = below(&format!("blocks.{}", config.depth));
    let names = vec![eva_vit::lavis_names("").ignoring(unused).under("vision.")];
    Ok(Frozen { config: TowerConfig::Eva(config), weights, names, path })
}

/// Patterns of all names of a block.
fn below(block: &str) -> [String; 2] {
    [format!("{block}.*.*"), format!("{block}.*.*.*")]
}

/// The language model behind a projection of this name.
fn frozen_language(
    dir: &Path,
    projection: &str,
    trained: &Checkpoint,
) -> Result<Frozen<WritingConfig>> {
    let path = dir.join(LANGUAGE);
    let file = path.join("config.json");
    if !file.is_file() {
        return Err(Error::Config {
            file: dir.to_owned(),
            field: projection.to_owned(),
            reason: format!(
                "the frozen language model behind it is not part of this checkpoint; put the one \
                 that it was trained with, with its config.json, into {}",
                path.display()
            ),
        });
    }
    let weights = Arc::new(Checkpoint::open(&path)?.as_part_of(trained));
    let has = |name: &str| weights.info(name).is_some();
    let value = read_json(&file)?;
    let f = Fields::new(&value, &file);
    let usual = if projection == "t5_proj" { "t5" } else { "opt" };
    let mut config = blip2_config::writing(&f, usual, has("lm_head.weight"), None)?;
    let names = match &mut config.language {
        LanguageConfig::Opt(c) => {
            if (OPT_NEWLINE as usize) < c.vocab {
                config.eos_ids = vec![OPT_NEWLINE];
            }
            let prefix = if has("decoder.embed_tokens.weight") { "" } else { "model." };
            vec![opt::names(prefix)]
        }
        LanguageConfig::Llama(c) => llama::names("", c.has_tied_head),
        LanguageConfig::T5(c) => {
            // LAVIS runs Flan-T5 with the exact GELU, whatever its configuration says.
            c.activation = Activation::Gelu;
            vec![t5::names("", c)]
        }
    };
    let names = names.into_iter().map(|names| names.under("language.")).collect();
    Ok(Frozen { config, weights, names, path })
}
