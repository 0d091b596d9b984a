//! From a path to a running model: which family its files are of, and what belongs to it.

mod bert_config;
mod blip2_config;
mod blip2_parts;
mod blip_config;
mod builtin;
mod causal_config;
mod clip_config;
mod compose;
mod fields;
mod gguf_config;
mod llava_config;
mod memory;
mod minigpt4_config;
mod minigpt4_parts;
mod publish;
mod shapes;
mod t5_config;
mod vit_config;

use self::compose::Layer;
use self::fields::Fields;
pub use self::memory::{Need, Work};
pub use self::publish::{Published, published};
pub use self::shapes::{Inventory, inventory};
use crate::connector::qformer::QFormer;
use crate::language::bert::{self, Bert};
use crate::language::causal::CausalModel;
use crate::language::gpt2::Gpt2;
use crate::language::llama::Llama;
use crate::language::opt::Opt;
use crate::language::t5::T5;
use crate::systems::blip::Blip;
use crate::systems::blip2::Blip2;
use crate::systems::clip::{self, Clip};
use crate::systems::lit::{Lit, LitConfig};
use crate::systems::llava::Llava;
use crate::systems::matcher::Matcher;
use crate::systems::minigpt4::MiniGpt4;
use crate::systems::talker::Talker;
use crate::systems::writer::Writer;
use crate::vision::clip_vit::ClipVit;
use crate::vision::eva_vit::EvaVit;
use crate::vision::local_vit::LocalVit;
use crate::vision::resnet_v2::{self, HybridVit};
use crate::vision::vit::{self, Vit, VitConfig};
use crate::{Error, Result};
use ocelli_data::image::Processor;
use ocelli_data::text::{Behaviour, BertTokenizer, ChatTemplate, ClipTokenizer, Tokenizer};
use ocelli_nn::checkpoint::{Checkpoint, gguf};
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::BlockKind;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A family of checkpoints: one layout of files and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// ViT of transformers.
    TransformersVit,
    /// DINOv2 of transformers.
    Dinov2,
    /// ViT of timm.
    TimmVit,
    /// ViT on a ResNet of timm.
    TimmHybrid,
    /// ViT of the original code, on a ResNet or not, `.npz`.
    JaxVit,
    /// CLIP of transformers.
    TransformersClip,
    /// CLIP of open_clip.
    OpenClip,
    /// CLIP of OpenAI.
    OpenAiClip,
    /// BERT of transformers.
    Bert,
    /// The tower of EVA-CLIP, as its release and LAVIS name it.
    EvaVit,
    /// The trunk of CLIP's tower, as LAVIS names it.
    LavisClipVit,
    /// A Q-Former alone, as LAVIS names it.
    QFormer,
    /// BLIP of transformers.
    TransformersBlip,
    /// BLIP of the original code.
    OriginalBlip,
    /// BLIP-2 of transformers.
    TransformersBlip2,
    /// InstructBLIP of transformers.
    InstructBlip,
    /// BLIP-2 of LAVIS.
    LavisBlip2,
    /// LLaMA and Vicuna of transformers.
    Llama,
    /// GPT-2 of transformers.
    Gpt2,
    /// OPT of transformers.
    Opt,
    /// T5 of transformers.
    T5,
    /// A LLaMA in a GGUF file.
    Gguf,
    /// LLaVA, of transformers or of the original code.
    Llava,
    /// MiniGPT-4 and MiniGPT-v2 of the original code.
    MiniGpt4,
    /// A model that this program trained.
    Ocelli,
}

impl Family {
    /// All families with their names on the command line.
    pub const ALL: [(&'static str, Self); 25] = [
        ("transformers-vit", Self::TransformersVit),
        ("dinov2", Self::Dinov2),
        ("timm-vit", Self::TimmVit),
        ("timm-hybrid", Self::TimmHybrid),
        ("jax-vit", Self::JaxVit),
        ("transformers-clip", Self::TransformersClip),
        ("open-clip", Self::OpenClip),
        ("openai-clip", Self::OpenAiClip),
        ("bert", Self::Bert),
        ("eva-vit", Self::EvaVit),
        ("lavis-clip-vit", Self::LavisClipVit),
        ("qformer", Self::QFormer),
        ("transformers-blip", Self::TransformersBlip),
        ("original-blip", Self::OriginalBlip),
        ("transformers-blip2", Self::TransformersBlip2),
        ("instructblip", Self::InstructBlip),
        ("lavis-blip2", Self::LavisBlip2),
        ("llama", Self::Llama),
        ("gpt2", Self::Gpt2),
        ("opt", Self::Opt),
        ("t5", Self::T5),
        ("gguf", Self::Gguf),
        ("llava", Self::Llava),
        ("minigpt4", Self::MiniGpt4),
        ("ocelli", Self::Ocelli),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("", |(name, _)| name)
    }

    /// Short names of the families that most files are of.
    const SHORT: [(&'static str, Self); 5] = [
        ("vit", Self::TransformersVit),
        ("timm", Self::TimmVit),
        ("npz", Self::JaxVit),
        ("clip", Self::TransformersClip),
        ("openai", Self::OpenAiClip),
    ];

    /// The family of that name, or short name; `open_clip` is as good as `open-clip`.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase().replace('_', "-");
        Self::ALL.iter().chain(&Self::SHORT).find(|(n, _)| *n == name).map(|(_, f)| *f)
    }
}

/// A model of any kind.
#[derive(Debug)]
pub enum Model {
    /// A ViT with or without a head.
    Vit(Box<Vit>),
    /// A ViT on the feature map of a ResNet.
    Hybrid(Box<HybridVit>),
    /// A ViT with local or axial attention.
    LocalVit(Box<LocalVit>),
    /// A CLIP.
    Clip(Box<Clip>),
    /// A BERT.
    Bert(Box<Bert>),
    /// A LiT.
    Lit(Box<Lit>),
    /// A LLaMA.
    Llama(Box<Llama>),
    /// A GPT-2.
    Gpt2(Box<Gpt2>),
    /// An OPT.
    Opt(Box<Opt>),
    /// The tower of EVA-CLIP.
    EvaVit(Box<EvaVit>),
    /// The trunk of CLIP's tower.
    ClipVit(Box<ClipVit>),
    /// A Q-Former.
    QFormer(Box<QFormer>),
    /// A BLIP.
    Blip(Box<Blip>),
    /// A BLIP-2 or an InstructBLIP.
    Blip2(Box<Blip2>),
    /// A T5.
    T5(Box<T5>),
    /// A LLaVA.
    Llava(Box<Llava>),
    /// A MiniGPT-4 or a MiniGPT-v2.
    MiniGpt4(Box<MiniGpt4>),
}

impl Model {
    /// What the model is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vit(_) => "a ViT",
            Self::Hybrid(_) => "a hybrid ViT",
            Self::LocalVit(_) => "a local ViT",
            Self::Clip(_) => "a CLIP",
            Self::Bert(_) => "a BERT",
            Self::Lit(_) => "a LiT",
            Self::Llama(_) => "a LLaMA",
            Self::Gpt2(_) => "a GPT-2",
            Self::Opt(_) => "an OPT",
            Self::EvaVit(_) => "the tower of an EVA-CLIP",
            Self::ClipVit(_) => "the trunk of a CLIP",
            Self::QFormer(_) => "a Q-Former",
            Self::Blip(_) => "a BLIP",
            Self::Blip2(_) => "a BLIP-2",
            Self::T5(_) => "a T5",
            Self::Llava(_) => "a LLaVA",
            Self::MiniGpt4(_) => "a MiniGPT-4",
        }
    }

    /// What writes about pictures, if the model does.
    pub fn writer(&self) -> Option<&dyn Writer> {
        match self {
            Self::Blip(model) => Some(&**model),
            Self::Blip2(model) if model.config().writing.is_some() => Some(&**model),
            Self::Llava(model) => Some(&**model),
            Self::MiniGpt4(model) => Some(&**model),
            _ => None,
        }
    }

    /// What talks about pictures, if the model does.
    pub fn talker(&self) -> Option<&dyn Talker> {
        match self {
            Self::Llava(model) => Some(&**model),
            Self::MiniGpt4(model) => Some(&**model),
            _ => None,
        }
    }

    /// What reads pictures and texts together, if the model does.
    pub fn matcher(&self) -> Option<&dyn Matcher> {
        match self {
            Self::Blip(model) => Some(&**model),
            Self::Blip2(model) if model.config().matching.is_some() => Some(&**model),
            _ => None,
        }
    }

    /// The language model that this is, if it is one without an encoder.
    pub fn causal(&self) -> Option<&dyn CausalModel> {
        match self {
            Self::Llama(model) => Some(&**model),
            Self::Gpt2(model) => Some(&**model),
            Self::Opt(model) => Some(&**model),
            _ => None,
        }
    }
}

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
                Self::of_config(&config).or_else(|| Self::of_weights(path).ok().flatten())
            }
            (None, None) => Self::of_weights(path)?,
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

    fn of_config(config: &Value) -> Option<Family> {
        let text = |key: &str| config.get(key).and_then(Value::as_str);
        if text("format") == Some("ocelli") {
            return Some(Family::Ocelli);
        }
        if config.get("model_cfg").is_some() {
            return Some(Family::OpenClip);
        }
        match text("model_type") {
            Some("vit") => return Some(Family::TransformersVit),
            Some("dinov2") => return Some(Family::Dinov2),
            Some("clip") => return Some(Family::TransformersClip),
            Some("bert") => return Some(Family::Bert),
            Some("t5") => return Some(Family::T5),
            Some("llama") => return Some(Family::Llama),
            Some("llava" | "llava_llama") => return Some(Family::Llava),
            Some("gpt2") => return Some(Family::Gpt2),
            Some("opt") => return Some(Family::Opt),
            Some("blip") => return Some(Family::TransformersBlip),
            Some("blip-2") => return Some(Family::TransformersBlip2),
            Some("instructblip") => return Some(Family::InstructBlip),
            _ => {}
        }
        let args = config.get("model_args");
        if args.and_then(|a| a.get("backbone")).is_some() {
            return Some(Family::TimmHybrid);
        }
        text("architecture").filter(|a| a.starts_with("vit")).map(|_| Family::TimmVit)
    }

    fn of_weights(path: &Path) -> Result<Option<Family>> {
        Ok(Self::of_tensors(&Checkpoint::open(path)?))
    }

    fn of_tensors(weights: &Checkpoint) -> Option<Family> {
        let has = |name: &str| weights.info(name).is_some();
        let jax = "Transformer/encoder_norm/scale";
        if has("visual.conv1.weight") {
            Some(Family::OpenAiClip)
        } else if has(jax) || has(&format!("opt/target/{jax}")) {
            Some(Family::JaxVit)
        } else if blip_config::is_original(weights) {
            Some(Family::OriginalBlip)
        } else {
            blip2_config::family_of(weights)
        }
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
        let family = Self::of_config(&config).unwrap_or(Family::Ocelli);
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

    /// How pictures are prepared for the model. Needs no weights, except for OpenAI's archives,
    /// whose picture size is known from them alone.
    ///
    /// # Errors
    /// If a processor file cannot be read.
    pub fn processor(&self) -> Result<Processor> {
        // The error names the file.
        let path = self.dir().to_owned();
        let picture = |source| Error::Data(ocelli_data::Error::Picture { path, source });
        let at = self.dir().join("preprocessor_config.json");
        if at.is_file() {
            // What the library takes for a model whose file does not say.
            let usual = match self.family {
                Family::TransformersVit => "ViTImageProcessor",
                Family::Dinov2 => "BitImageProcessor",
                Family::TransformersClip => "CLIPImageProcessor",
                Family::TransformersBlip | Family::TransformersBlip2 | Family::InstructBlip => {
                    "BlipImageProcessor"
                }
                _ => "",
            };
            return Processor::from_hf_json_or(&read_text(&at)?, usual).map_err(picture);
        }
        let config = self.config.to_string();
        match self.family {
            Family::OpenClip => Processor::from_open_clip_json(&config).map_err(picture),
            Family::TimmVit | Family::TimmHybrid if self.config.get("pretrained_cfg").is_some() => {
                Processor::from_timm_json(&config).map_err(picture)
            }
            Family::TransformersClip => {
                let size = clip_config::transformers(&self.config, &self.config_file())?;
                Ok(Processor::openai(size.vision.image_size().0))
            }
            Family::OpenAiClip => {
                let weights = self.weights()?;
                let size = clip_config::openai(&weights, &self.path, HeadCounts::default())?;
                Ok(Processor::openai(size.vision.image_size().0))
            }
            Family::TransformersBlip | Family::OriginalBlip => {
                let weights = || self.weights();
                let (height, width) = blip_config::image_size(
                    self.family,
                    &self.config,
                    &self.config_file(),
                    &weights,
                )?;
                // Squeezed to the size, then as CLIP.
                let text = format!(
                    r#"{{"image_processor_type": "BlipImageProcessor",
                    "size": {{"height": {height}, "width": {width}}}}}"#
                );
                Processor::from_hf_json(&text).map_err(picture)
            }
            Family::TransformersBlip2 | Family::InstructBlip | Family::LavisBlip2 => {
                let weights = || self.weights();
                let of = blip2_config::image_size(self.family, &self.config, &weights);
                let (height, width) = of?;
                // Squeezed to the size, then as CLIP.
                let text = format!(
                    r#"{{"image_processor_type": "BlipImageProcessor",
                    "size": {{"height": {height}, "width": {width}}}}}"#
                );
                Processor::from_hf_json(&text).map_err(picture)
            }
            Family::Llava if llava_config::is_original(&self.config) => {
                llava_config::processor(&self.config, &self.config_file())
            }
            Family::MiniGpt4 => {
                let weights = self.weights()?;
                let file = self.config_file();
                let (height, width) = minigpt4_config::image_size(&self.config, &weights, &file)?;
                // Squeezed to the size, then as CLIP.
                let text = format!(
                    r#"{{"image_processor_type": "BlipImageProcessor",
                    "size": {{"height": {height}, "width": {width}}}}}"#
                );
                Processor::from_hf_json(&text).map_err(picture)
            }
            Family::Ocelli => self.own_processor(),
            Family::Bert
            | Family::QFormer
            | Family::Llama
            | Family::Gpt2
            | Family::Opt
            | Family::T5
            | Family::Gguf => {
                let is = match self.family {
                    Family::Bert => "a BERT",
                    Family::QFormer => "a Q-Former",
                    Family::Gpt2 => "a GPT-2",
                    Family::Opt => "an OPT",
                    Family::T5 => "a T5",
                    _ => "a LLaMA",
                };
                let (what, needs) = ("preparing pictures", "a model that sees");
                Err(Error::Unsuitable { what, needs, is: is.to_owned() })
            }
            Family::Llava => Err(Error::Io {
                path: at,
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "there is no such file; fetch it, it says how pictures are prepared",
                ),
            }),
            _ => {
                // The original ViT preprocessing: squeezed to the size, [-1, 1].
                let (height, width) = self.vit_config()?.image_size;
                let text = format!(
                    r#"{{"image_processor_type": "ViTImageProcessor", "do_resize": true,
                    "size": {{"height": {height}, "width": {width}}}, "resample": 2,
                    "do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true,
                    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}"#
                );
                Processor::from_hf_json(&text).map_err(picture)
            }
        }
    }

    fn own_processor(&self) -> Result<Processor> {
        let text = self.config.get("preprocessing").map(Value::to_string).unwrap_or_default();
        let path = self.config_file();
        Processor::from_hf_json(&text)
            .map_err(|source| Error::Data(ocelli_data::Error::Picture { path, source }))
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

    /// The tokenizer of a model that reads text. Needs no weights.
    ///
    /// # Errors
    /// If a tokenizer file cannot be read.
    pub fn tokenizer(&self) -> Result<ClipTokenizer> {
        if self.is_builtin {
            return builtin::tokenizer();
        }
        let behaviour = match self.family {
            // Texts of training are read as OpenAI's code does, so that is how the model takes them.
            _ if self.is_trained_here() => Behaviour::OpenAi,
            Family::TransformersClip => Behaviour::HuggingFace,
            Family::OpenClip => Behaviour::OpenClip,
            _ => Behaviour::OpenAi,
        };
        tokenizer(self.dir(), behaviour)
    }

    /// Tokens that end what the model writes: those of `generation_config.json`, or else of
    /// `config.json`; none if neither says.
    ///
    /// # Errors
    /// If `generation_config.json` cannot be read.
    pub fn end_tokens(&self) -> Result<Vec<u32>> {
        if self.family == Family::Gguf {
            return Ok(gguf_config::end_tokens(&self.config));
        }
        let file = self.dir().join("generation_config.json");
        let own = if file.is_file() { read_json(&file)? } else { Value::Null };
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let of = |config: &Value| match config.get("eos_token_id")? {
            Value::Array(list) => Some(list.iter().filter_map(id).collect()),
            one => Some(vec![id(one)?]),
        };
        Ok(of(&own).or_else(|| of(&self.config)).unwrap_or_default())
    }

    /// The tokenizer of a language model. Needs no weights.
    ///
    /// # Errors
    /// If there is no tokenizer file, or it cannot be read.
    pub fn language_tokenizer(&self) -> Result<Tokenizer> {
        if self.family == Family::Gguf {
            return gguf_config::tokenizer(&self.config, &self.path);
        }
        Ok(Tokenizer::from_dir(&self.tokenizer_dir()).map_err(ocelli_data::Error::from)?)
    }

    /// The folder of the tokenizer of a language model.
    fn tokenizer_dir(&self) -> PathBuf {
        let apart = self.dir().join(blip2_parts::LANGUAGE);
        let has_parts = [Family::LavisBlip2, Family::MiniGpt4].contains(&self.family);
        if has_parts && apart.is_dir() { apart } else { self.dir().to_owned() }
    }

    /// The file of the tokenizer of a language model, or the folder that should hold one.
    pub fn tokenizer_file(&self) -> PathBuf {
        if self.family == Family::Gguf {
            return self.path.clone();
        }
        let dir = self.tokenizer_dir();
        let names =
            ["tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"];
        names.iter().map(|name| dir.join(name)).find(|file| file.is_file()).unwrap_or(dir)
    }

    /// The chat template of a language model with this `tokenizer`, if its files have one. Needs no
    /// weights.
    ///
    /// # Errors
    /// If it is broken.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let template = if self.family == Family::Gguf {
            let file = self.path.display().to_string();
            let source = self.config.get("tokenizer.chat_template").and_then(Value::as_str);
            source.map(|source| ChatTemplate::for_tokenizer(source, &file, tokenizer)).transpose()
        } else {
            ChatTemplate::from_dir(self.dir(), tokenizer)
        };
        Ok(template.map_err(ocelli_data::Error::from)?)
    }

    /// Whether its texts go through the tokenizer of BERT.
    pub fn has_bert_tokenizer(&self) -> bool {
        let families = [Family::Bert, Family::TransformersBlip, Family::OriginalBlip];
        // A BLIP-2 that compares pictures with texts has no tokenizer but that of its Q-Former.
        let compares = [Family::TransformersBlip2, Family::LavisBlip2].contains(&self.family)
            && self.dir().join("vocab.txt").is_file();
        families.contains(&self.family) || compares || self.is_own("lit")
    }

    /// Whether this program trained it, with sizes in this section of the configuration.
    fn is_own(&self, section: &str) -> bool {
        self.family == Family::Ocelli && self.config.get(section).is_some()
    }

    /// The tokenizer of a BERT or a LiT. Needs no weights.
    ///
    /// # Errors
    /// If there is no tokenizer file, or it cannot be read.
    pub fn bert_tokenizer(&self) -> Result<BertTokenizer> {
        Ok(BertTokenizer::load(self.dir()).map_err(ocelli_data::Error::from)?)
    }

    /// Tokens of a text as the model takes it; a sentence encoder may take fewer than its BERT.
    ///
    /// # Errors
    /// If the configuration cannot be read.
    pub fn context_length(&self) -> Result<usize> {
        if !self.has_bert_tokenizer() {
            return Ok(self.clip_config()?.text.context_length);
        }
        let file = self.config_file();
        let most = match self.family {
            Family::Bert => bert_config::transformers(&self.config, &file)?.context_length,
            Family::Ocelli => self.own_config::<LitConfig>("lit")?.text.context_length,
            Family::TransformersBlip2 | Family::LavisBlip2 => {
                blip2_config::context_length(&self.config, &file)?
            }
            _ => blip_config::context_length(&self.config, &file)?,
        };
        let file = self.dir().join("sentence_bert_config.json");
        if !file.is_file() {
            return Ok(most);
        }
        Ok(Fields::new(&read_json(&file)?, &file).size("max_seq_length", Some(most))?.min(most))
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

    fn open_weights(self, weights: &Arc<Checkpoint>, heads: HeadCounts) -> Result<Opened> {
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
            Family::Llama | Family::Gpt2 | Family::Opt => {
                causal_config::open(self.family, &self.config, weights, &file)?
            }
            Family::Llava => llava_config::open(&self.config, weights, &file)?,
            Family::MiniGpt4 => minigpt4_config::open(&self.config, weights, &file)?,
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

/// The tokenizer of a directory, or CLIP's own where the directory holds none.
///
/// # Errors
/// If a tokenizer file cannot be read.
pub fn tokenizer(dir: &Path, behaviour: Behaviour) -> Result<ClipTokenizer> {
    if has_clip_vocabulary(dir) {
        return Ok(ClipTokenizer::load(dir, behaviour).map_err(ocelli_data::Error::from)?);
    }
    Ok(ClipTokenizer::builtin(behaviour))
}

/// Whether a folder has a vocabulary of CLIP's kind, or the path is the file of one.
fn has_clip_vocabulary(dir: &Path) -> bool {
    let files = ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz"];
    dir.is_file() || files.iter().any(|f| dir.join(f).is_file())
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
