//! From a path to a running model: which family its files are of, and what belongs to it.

mod bert_config;
mod blip2_config;
mod blip2_parts;
mod blip_config;
mod builtin;
mod causal_config;
mod clip_config;
mod compose;
mod family;
mod fields;
mod flamingo_config;
mod flamingo_parts;
mod gguf_config;
mod in_bytes;
mod llava_config;
mod memory;
mod minigpt4_config;
mod minigpt4_parts;
mod model;
mod mplug_owl_config;
mod nfnet_config;
mod open;
mod processor;
mod publish;
mod qwen_vl_config;
mod shapes;
mod t5_config;
mod texts;
mod visualglm_config;
mod vit_config;
mod xcomposer_config;

use self::compose::Layer;
pub use self::family::Family;
pub use self::in_bytes::WrittenInBytes;
pub use self::memory::{Need, Work};
pub use self::model::{Model, PictureEncoder};
pub use self::publish::{Published, published};
pub use self::shapes::{Inventory, inventory};
pub use self::texts::tokenizer;
use crate::systems::clip;
use crate::vision::vit::VitConfig;
use crate::{Error, Result};
use ocelli_nn::checkpoint::{Checkpoint, gguf};
use ocelli_nn::{Names, Parameters};
use ocelli_tensor::BlockKind;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Head counts where a file does not tell them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadCounts {
    /// Of the vision tower, or of its attention pooling.
    pub vision: Option<usize>,
    /// Of the text tower.
    pub text: Option<usize>,
}

/// The files of a model: where they are and what they are.
#[derive(Clone, Debug)]
pub struct Files {
    path: PathBuf,
    family: Family,
    config: Value,
    is_builtin: bool,
    quant: Option<BlockKind>,
    /// What comes on top of the weights at `path`.
    layers: Vec<Layer>,
    /// Where the configuration is, if not beside those weights.
    config_at: Option<PathBuf>,
}

/// A model with all that belongs to it.
#[derive(Debug)]
pub struct Opened {
    /// The layers.
    pub model: Model,
    /// All parameters.
    pub parameters: Parameters,
    /// The name maps that they were found through.
    pub names: Vec<Names>,
    /// The family of the files.
    pub family: Family,
    /// Where they are.
    pub path: PathBuf,
    /// The files of each part of a model whose parts lie in different ones; else empty.
    pub sources: Vec<Source>,
}

impl Opened {
    /// Rows of the largest table of words, if the model reads words.
    pub fn words(&self) -> Option<usize> {
        let is_table = |name: &str| name.rsplit('.').next() == Some("word");
        let tables = self.parameters.iter().filter(|p| is_table(p.name()));
        tables.filter_map(|p| p.shape().first().copied()).max()
    }
}

/// Where a part of a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The part, as its parameters' names begin.
    pub part: &'static str,
    /// The file, or the directory.
    pub path: PathBuf,
}

/// Where a model's configuration may be, most telling first.
const CONFIGS: [&str; 2] = ["open_clip_config.json", "config.json"];

impl Files {
    /// Finds out what lies at `path`, a directory or a weights file; `family` overrules.
    ///
    /// # Errors
    /// If nothing there is known, or a configuration cannot be read.
    pub fn find(path: &Path, family: Option<Family>) -> Result<Self> {
        Self::find_on(path, family, None)
    }

    /// The same for what lies on top of another model, and names none or one that is elsewhere:
    /// changes of low rank or a projector on `base`, or the difference to it.
    ///
    /// # Errors
    /// As for [`Files::find`].
    pub fn find_on(path: &Path, family: Option<Family>, base: Option<&Path>) -> Result<Self> {
        let found = compose::find(path, base)?;
        let config_at = found.config.as_deref();
        let files = Self::find_at(&found.path, family, config_at)?;
        Ok(Self { layers: found.layers, config_at: found.config, ..files })
    }

    fn find_at(path: &Path, family: Option<Family>, config_at: Option<&Path>) -> Result<Self> {
        if let Some(file) = gguf_config::file_at(path)
            && family.is_none_or(|f| f == Family::Gguf)
        {
            let config = Value::Object(gguf::metadata(&file)?);
            return Ok(Self { path: file, config, ..Self::of_family(Family::Gguf) });
        }
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        let mut config = Value::Null;
        let mut file = None;
        if let Some(at) = config_at {
            config = read_json(at)?;
            file = Some(CONFIGS[1]);
        }
        for name in CONFIGS.iter().filter(|_| config_at.is_none()).copied() {
            let at = dir.join(name);
            if at.is_file() {
                config = read_json(&at)?;
                file = Some(name);
                break;
            }
        }
        let found = match (family, file) {
            (Some(family), _) => Some(family),
            (None, Some("open_clip_config.json")) => Some(Family::OpenClip),
            // A configuration that says nothing does not hide weights that do.
            (None, Some(_)) => {
                Family::of_config(&config).or_else(|| Self::family_of(path).ok().flatten())
            }
            (None, None) => Self::family_of(path)?,
        };
        match found {
            Some(family) => Ok(Self { path: path.to_owned(), config, ..Self::of_family(family) }),
            None => {
                let of = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
                let found = of("model_type").or_else(|| of("architecture"));
                let found = found.map_or_else(
                    || "no configuration".to_owned(),
                    |kind| format!("a configuration of `{kind}`"),
                );
                Err(Error::UnknownModel { path: path.to_owned(), found })
            }
        }
    }

    fn family_of(path: &Path) -> Result<Option<Family>> {
        Ok(Family::of_tensors(&Checkpoint::open(path)?))
    }

    fn of_family(family: Family) -> Self {
        let (path, config) = (PathBuf::new(), Value::Null);
        let (layers, config_at) = (Vec::new(), None);
        Self { path, family, config, is_builtin: false, quant: None, layers, config_at }
    }

    /// The same with the weights of linear layers in blocks of few bits. Weights that a file holds
    /// in blocks stay as they are if nothing is asked for.
    #[must_use]
    pub fn quantised(self, kind: BlockKind) -> Self {
        Self { quant: Some(kind), ..self }
    }

    /// The model inside the program.
    ///
    /// # Errors
    /// Never with the files that the program was built from.
    pub fn builtin() -> Result<Self> {
        let path = PathBuf::from(builtin::NAME);
        let config: Value = serde_json::from_str(builtin::CONFIG).map_err(|e| Error::Config {
            file: path.clone(),
            field: "JSON".to_owned(),
            reason: e.to_string(),
        })?;
        let family = Family::of_config(&config).unwrap_or(Family::Ocelli);
        Ok(Self { path, config, is_builtin: true, ..Self::of_family(family) })
    }

    fn weights(&self) -> Result<Checkpoint> {
        let weights = if self.is_builtin {
            Checkpoint::from_bytes(builtin::WEIGHTS)?
        } else {
            let mut weights = Checkpoint::open(&self.path)?;
            for layer in &self.layers {
                weights = layer.onto(weights)?;
            }
            compose::complete(self, weights)?
        };
        Ok(match self.quant {
            Some(kind) => weights.quantised(kind),
            None => weights,
        })
    }

    /// Labels to look for when none are given: those of the model inside the program.
    pub fn labels(&self) -> Option<Vec<String>> {
        self.is_builtin.then(|| builtin::LABELS.lines().map(str::to_owned).collect())
    }

    /// The prompt that a label stands in when none is given: what the texts of the training looked
    /// like.
    pub fn template(&self) -> &'static str {
        if self.is_trained_here() { "{}" } else { "a photo of a {}." }
    }

    fn is_trained_here(&self) -> bool {
        self.family == Family::Ocelli || self.config.get(publish::TRAINED_WITH).is_some()
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    fn dir(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new(".")) }
    }

    fn config_file(&self) -> PathBuf {
        if self.family == Family::Gguf {
            return self.path.clone();
        }
        if let Some(at) = &self.config_at {
            return at.clone();
        }
        let name = if self.family == Family::OpenClip { CONFIGS[0] } else { CONFIGS[1] };
        self.dir().join(name)
    }

    fn vit_config(&self) -> Result<VitConfig> {
        let file = self.config_file();
        match self.family {
            Family::TransformersVit => vit_config::transformers(&self.config, &file),
            Family::Dinov2 => vit_config::dinov2(&self.config, &file),
            Family::JaxVit => vit_config::jax(&self.weights()?, &self.path),
            _ => vit_config::timm(&self.config, &file),
        }
    }

    /// Whether this program trained it, with sizes in this section of the configuration.
    fn is_own(&self, section: &str) -> bool {
        self.family == Family::Ocelli && self.config.get(section).is_some()
    }

    fn clip_config(&self) -> Result<clip::ClipConfig> {
        let file = self.config_file();
        match self.family {
            Family::TransformersClip => clip_config::transformers(&self.config, &file),
            Family::OpenClip => clip_config::open_clip(&self.config, &file),
            Family::Ocelli => self.own_config("clip"),
            _ => {
                let weights = self.weights()?;
                clip_config::openai(&weights, &self.path, HeadCounts::default())
            }
        }
    }

    /// The sizes of a model that this program trained.
    fn own_config<T: DeserializeOwned>(&self, section: &str) -> Result<T> {
        let sizes = self.config.get(section).cloned().unwrap_or_default();
        serde_json::from_value(sizes).map_err(|e| Error::Config {
            file: self.config_file(),
            field: section.to_owned(),
            reason: format!("{e}; expected the sizes of a model that `ocelli train` exported"),
        })
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::Config {
        file: path.to_owned(),
        field: "JSON".to_owned(),
        reason: e.to_string(),
    })
}
