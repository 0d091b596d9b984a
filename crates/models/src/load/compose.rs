//! Models whose parts lie in several places: a projector on a language model, a difference on its
//! base, changes of low rank, a tower beside the rest. What is put together is one checkpoint.

use super::fields::Fields;
use super::llava_config::{self, LANGUAGE};
use super::{Family, Files, Source, flamingo_parts, minigpt4_parts, read_json};
use crate::{Error, Result};
use ocelli_nn::Parameters;
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::checkpoint::hub::{self, HubOptions};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands in a directory of changes of low rank.
const ADAPTER: &str = "adapter_config.json";
/// What was trained beside them.
const TRAINED_TOO: &str = "non_lora_trainables.bin";
/// A projector that was trained alone.
const PROJECTOR: &str = "mm_projector.bin";
/// What peft puts before the names of a model.
const PEFT: &str = "base_model.model.";
/// Where LLaVA 1.6 has the tower, which files of before keep apart.
const TOWER: &str = "model.vision_tower.vision_tower.vision_model.";

/// What comes on top of a model's weights.
#[derive(Clone, Debug)]
pub(super) enum Layer {
    /// The base that the weights are the difference to.
    Base(PathBuf),
    /// A file of a projector.
    Projector(PathBuf),
    /// A directory of changes of low rank, and how often they count.
    Adapter(PathBuf, f32),
}

/// A model by its base and what comes on top of it.
pub(super) struct Found {
    /// The base, or the whole.
    pub(super) path: PathBuf,
    /// The configuration of the whole, if it is not that of the base.
    pub(super) config: Option<PathBuf>,
    pub(super) layers: Vec<Layer>,
}

/// Finds out whether `path` is on top of something; `base` is what the user says it is on top of.
pub(super) fn find(path: &Path, base: Option<&Path>) -> Result<Found> {
    let whole = |layers| Found { path: path.to_owned(), config: None, layers };
    let own = path.join("config.json");
    let own_config = own.is_file().then_some(own);
    if let Some(trained) = minigpt4_parts::trained_in(path)? {
        return Ok(Found { path: trained, config: None, layers: Vec::new() });
    }
    let adapter = path.join(ADAPTER);
    if adapter.is_file() {
        let config = read_json(&adapter)?;
        let f = Fields::new(&config, &adapter);
        let base = base_of(base, &f, "base_model_name_or_path", path)?;
        let layers = vec![Layer::Adapter(path.to_owned(), 1.0)];
        return Ok(Found { path: base, config: own_config, layers });
    }
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let is_projector = path.file_name().is_some_and(|name| name == PROJECTOR);
    let projector = if is_projector { path.to_owned() } else { dir.join(PROJECTOR) };
    let is_alone = || path.is_dir() && projector.is_file() && Checkpoint::open(path).is_err();
    if is_projector || is_alone() {
        let own = dir.join("config.json");
        let config = if own.is_file() { read_json(&own)? } else { Value::Null };
        let f = Fields::new(&config, &own);
        let base = base_of(base, &f, "_name_or_path", dir)?;
        let config = own.is_file().then_some(own);
        return Ok(Found { path: base, config, layers: vec![Layer::Projector(projector)] });
    }
    Ok(whole(base.map(|base| Layer::Base(base.to_owned())).into_iter().collect()))
}

/// The base that a configuration names, unless the user names one.
fn base_of(given: Option<&Path>, f: &Fields, field: &str, dir: &Path) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let name = f.text(field).unwrap_or_default();
    let last = Path::new(name).file_name().unwrap_or_default();
    let beside = dir.parent().unwrap_or(Path::new(".")).join(last);
    let places = [PathBuf::from(name), dir.join(name), beside];
    let is_base = |place: &&PathBuf| !name.is_empty() && place.exists() && *place != dir;
    if let Some(place) = places.iter().find(is_base) {
        return Ok(place.clone());
    }
    let cached = HubOptions { offline: true, ..HubOptions::default() };
    let cached = (!name.is_empty()).then(|| hub::resolve(name, &cached).ok()).flatten();
    cached.ok_or_else(|| {
        let reason = format!(
            "the base `{name}` is not part of this checkpoint, not beside it and not in the hub \
             cache; fetch it, or give its path by --base"
        );
        f.error(field, reason)
    })
}

/// The name that a tensor has without what peft adds to it.
fn bare(name: &str) -> String {
    let name = name.strip_prefix(PEFT).unwrap_or(name);
    name.replace(".base_layer.", ".").replace(".default.", ".").replace(".modules_to_save.", ".")
}

impl Layer {
    /// The weights with this on top.
    pub(super) fn onto(&self, weights: Checkpoint) -> Result<Checkpoint> {
        Ok(match self {
            Self::Base(base) => weights.plus(&Arc::new(Checkpoint::open(base)?))?,
            Self::Projector(file) => {
                let at = |name: &str| {
                    let at = name.find("mm_projector.").map(|at| format!("model.{}", &name[at..]));
                    Some(at.unwrap_or_else(|| bare(name)))
                };
                weights.over(&Checkpoint::open(file)?, at)
            }
            Self::Adapter(dir, scale) => adapted(weights, dir, *scale)?,
        })
    }

    /// Where it lies.
    fn path(&self) -> &Path {
        let (Self::Base(path) | Self::Projector(path) | Self::Adapter(path, _)) = self;
        path
    }

    /// What it is, among the sources of a model.
    fn name(&self) -> &'static str {
        match self {
            Self::Base(_) => "base",
            Self::Projector(_) => "projector",
            Self::Adapter(..) => "adapter",
        }
    }
}

fn adapted(weights: Checkpoint, dir: &Path, scale: f32) -> Result<Checkpoint> {
    let file = dir.join(ADAPTER);
    let config = read_json(&file)?;
    let f = Fields::new(&config, &file);
    for field in ["use_dora", "lora_bias"] {
        if f.flag(field, false)? {
            return Err(f.error(field, "is not supported; merge this adapter in Python first"));
        }
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        if f.get(field).and_then(Value::as_object).is_some_and(|o| !o.is_empty()) {
            return Err(f.error(field, "is not supported; merge this adapter in Python first"));
        }
    }
    let rank = f.size("r", Some(8))? as f64;
    let divisor = if f.flag("use_rslora", false)? { rank.sqrt() } else { rank };
    let scale = scale * (f.number("lora_alpha", 8.0)? / divisor) as f32;
    let transposed = f.flag("fan_in_fan_out", false)?;
    let base_name = f.text("base_model_name_or_path").unwrap_or("it does not say which");
    let names = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| dir.join(name));
    let [safe, pickled] = &names;
    let adapter = Checkpoint::open(if safe.is_file() { safe } else { pickled })?;
    // Tensors that were trained whole stand among the changes.
    let is_change = |name: &str| name.contains(".lora_A.") || name.contains(".lora_B.");
    let whole = |name: &str| (!is_change(name)).then(|| bare(name));
    let weights = weights.over(&adapter, whole);
    let too = dir.join(TRAINED_TOO);
    let weights = if too.is_file() {
        weights.over(&Checkpoint::open(&too)?, |name| Some(bare(name)))
    } else {
        weights
    };
    let changes = Checkpoint::default()
        .over(&adapter, |name| is_change(name).then(|| name.replace(".default.", ".")));
    let known: BTreeSet<String> = weights.names().map(str::to_owned).collect();
    let target = |name: &str| {
        let name = bare(name);
        if known.contains(&name) {
            return Some(name);
        }
        // The same layer where the language model is a part of a system.
        let layer = &name[name.find("layers.")?..];
        LANGUAGE.iter().map(|prefix| format!("{prefix}{layer}")).find(|name| known.contains(name))
    };
    Ok(weights.with_low_rank(&Arc::new(changes), scale, transposed, base_name, target)?)
}

/// A model's parts that lie outside of its own files, put among them.
pub(super) fn complete(files: &Files, weights: Checkpoint) -> Result<Checkpoint> {
    match files.family {
        Family::Llava => with_tower(files, weights),
        Family::Flamingo => flamingo_parts::complete(&files.path, &weights),
        Family::MiniGpt4 => minigpt4_parts::complete(&files.path, weights),
        _ => Ok(weights),
    }
}

/// LLaVA of the original code, with the CLIP that its configuration names.
fn with_tower(files: &Files, weights: Checkpoint) -> Result<Checkpoint> {
    let held = weights.names().any(|name| name.ends_with("embeddings.class_embedding"));
    if held || !llava_config::is_original(&files.config) {
        return Ok(weights);
    }
    let dir = llava_config::tower_dir(&files.config, &files.config_file())?;
    let tower = Checkpoint::open(&dir)?;
    let has_half = tower.info("vision_model.embeddings.class_embedding").is_some();
    let prefix = if has_half { "vision_model." } else { "" };
    Ok(weights.over(&tower, |name| name.strip_prefix(prefix).map(|name| format!("{TOWER}{name}"))))
}

/// Parts of systems, as the names of their parameters begin.
const PARTS: [&str; 10] = [
    "vision",
    "norm",
    "qformer",
    "abstractor",
    "projector",
    "projection",
    "language",
    "matching",
    "resampler",
    "gated",
];

/// Which part of a composed model comes from where; nothing of a model that lies in one place.
pub(super) fn sources(
    layers: &[Layer],
    weights: &Checkpoint,
    parameters: &Parameters,
    names: &[ocelli_nn::Names],
) -> Vec<Source> {
    let mut sources = Vec::new();
    for part in PARTS {
        let of_part =
            |name: &str| name.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
        let files: BTreeSet<PathBuf> = (parameters.iter().filter(|p| of_part(p.name())))
            .flat_map(|p| ocelli_nn::Names::stored(names, p.name()))
            .filter_map(|stored| weights.file_of(&stored).map(Path::to_owned))
            .collect();
        let path = match files.len() {
            0 => continue,
            1 => files.first().cloned(),
            // Shards.
            _ => files.first().and_then(|file| file.parent()).map(Path::to_owned),
        };
        sources.extend(path.map(|path| Source { part, path }));
    }
    let places: BTreeSet<&Path> = sources.iter().map(|s| &*s.path).collect();
    if places.len() < 2 && layers.is_empty() {
        return Vec::new();
    }
    for layer in layers.iter().filter(|layer| !matches!(layer, Layer::Projector(_))) {
        sources.push(Source { part: layer.name(), path: layer.path().to_owned() });
    }
    sources
}

impl Files {
    /// The same with changes of low rank (a directory of peft) added to the weights, `scale` times.
    ///
    /// # Errors
    /// If the directory has no `adapter_config.json`.
    pub fn with_adapter(mut self, dir: &Path, scale: f32) -> Result<Self> {
        if !dir.join(ADAPTER).is_file() {
            return Err(Error::Config {
                file: dir.to_owned(),
                field: ADAPTER.to_owned(),
                reason: "is missing; give the directory that peft wrote".to_owned(),
            });
        }
        self.layers.push(Layer::Adapter(dir.to_owned(), scale));
        Ok(self)
    }
}
