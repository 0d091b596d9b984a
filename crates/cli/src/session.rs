//! The model that a command works with, and all that belongs to it.

use crate::failure::Failure;
use crate::global::Global;
use crate::labels::class_names;
use crate::memory::{self, Bound};
use crate::shapes;
use crate::vectors::{self, finite};
use clap::{Arg, Args};
use indicatif::{ProgressBar, ProgressStyle};
use ocelli_data::image::Processor;
use ocelli_data::text::{self, Behaviour, BertTokenizer, ClipTokenizer, TextError, Truncate};
use ocelli_models::language::bert::Texts;
use ocelli_models::vision::vit::Head;
use ocelli_models::{Family, Files, HeadCounts, Model, Need, Opened, Work, WrittenInBytes};
use ocelli_nn::checkpoint::hub::{self, HubOptions};
use ocelli_tensor::{BlockKind, Narrow, Tensor};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Names in a folder that a suggestion is looked for in.
const MOST_NAMES: usize = 1000;
/// Tokens of a text in every published CLIP.
pub(crate) const CLIP_CONTEXT: usize = 77;

/// That a command has no model of its own to fall back on, which the arguments of the others say.
pub(crate) fn required(model: Arg) -> Arg {
    model.required(true).help("Model: a folder, a weights file, or org/name[@revision] of the hub")
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// Model: a folder, a weights file, or org/name[@revision] of the hub [default: the built-in
    /// model for drawings]
    #[arg(short, long, value_name = "MODEL", aliases = ["model-path", "model_path"])]
    pub(crate) model: Option<String>,
    /// Multiply in this type of number
    #[arg(long, value_name = "TYPE", alias = "precision", default_value = "f32")]
    pub(crate) dtype: Dtype,
    /// Hold the weights of linear layers in fewer bits
    #[arg(long, value_name = "TYPE")]
    pub(crate) quant: Option<Quant>,
    /// Add changes of low rank: a folder that peft wrote, and how often they count; repeatable
    #[arg(long, value_name = "PATH[=SCALE]")]
    pub(crate) lora: Vec<String>,
    /// The model that a folder of changes, a projector or a difference belongs to, where its own
    /// files do not say so
    #[arg(long, value_name = "MODEL", alias = "model-base")]
    pub(crate) base: Option<String>,
}

/// Types of number that linear layers multiply in.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// 32 bits
    F32,
    /// The upper half of them; sums are f32
    Bf16,
}

/// What weights are held in.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Quant {
    /// 8 bits with a scale for each output; what a layer reads too, with a scale for each row
    Int8,
    /// 8 bits with a scale for 32 values
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits with a scale for 32 values
    #[value(name = "q4_0")]
    Q4_0,
}

impl Quant {
    /// Blocks that have scales of their own.
    pub(crate) fn blocks(self) -> Option<BlockKind> {
        match self {
            Self::Int8 => None,
            Self::Q8_0 => Some(BlockKind::Q8_0),
            Self::Q4_0 => Some(BlockKind::Q4_0),
        }
    }

    /// As it is called on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl ModelArgs {
    /// A model as it is, the built-in one if none is named.
    pub(crate) fn plain(model: Option<&str>) -> Self {
        let model = model.map(str::to_owned);
        Self { model, dtype: Dtype::F32, quant: None, lora: Vec::new(), base: None }
    }

    /// What linear layers multiply in, if not in f32.
    pub(crate) fn narrow(&self) -> Option<Narrow> {
        match (self.quant, self.dtype) {
            (Some(Quant::Int8), _) => Some(Narrow::Int8),
            (None, Dtype::Bf16) => Some(Narrow::Bf16),
            _ => None,
        }
    }
}

/// A model that was found, not yet loaded.
pub(crate) struct Source {
    files: Files,
    path: PathBuf,
    narrow: Option<Narrow>,
    quant: Option<Quant>,
}

impl Source {
    /// How pictures are prepared for it. Needs no weights.
    pub(crate) fn processor(&self) -> Result<Processor, Failure> {
        Ok(self.files.processor()?)
    }

    /// Labels to look for when none are given.
    pub(crate) fn labels(&self) -> Option<Vec<String>> {
        self.files.labels()
    }

    /// The prompt that a label stands in when none is given.
    pub(crate) fn template(&self) -> &'static str {
        self.files.template()
    }

    /// The tokenizer of a language model. Needs no weights.
    pub(crate) fn language_tokenizer(&self) -> Result<text::Tokenizer, Failure> {
        Ok(self.files.language_tokenizer()?)
    }

    /// The chat template of a language model, if it has one. Needs no weights.
    pub(crate) fn chat_template(
        &self,
        tokenizer: &text::Tokenizer,
    ) -> Result<Option<text::ChatTemplate>, Failure> {
        Ok(self.files.chat_template(tokenizer)?)
    }

    /// Tokens that end what it writes, as its files say.
    pub(crate) fn end_tokens(&self) -> Result<Vec<u32>, Failure> {
        Ok(self.files.end_tokens()?)
    }

    /// Writes it to a new folder with weights as bytes.
    pub(crate) fn save_in_bytes(&self, to: &Path) -> Result<WrittenInBytes, Failure> {
        Ok(self.files.save_in_bytes(to)?)
    }

    /// The folder of its files.
    pub(crate) fn dir(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new(".")) }
    }

    /// What it is, without its values, which are not read.
    pub(crate) fn measure(&self) -> Result<Opened, Failure> {
        let opened = self.files.measure(HeadCounts::default())?;
        if let Some(kind) = self.narrow {
            opened.parameters.narrow(kind);
        }
        Ok(opened)
    }

    /// That it may take the memory that this work needs.
    fn check_memory(
        &self,
        global: &Global,
        work: Work,
        bound: Option<&Bound>,
    ) -> Result<(), Failure> {
        let Some(limit) = global.memory_limit() else { return Ok(()) };
        let measured = self.measure()?;
        let need_of = |m: &Opened, work| Need::of(&m.model, &m.parameters, work);
        let need = need_of(&measured, work);
        if need.total() <= limit {
            return Ok(());
        }
        let smaller = match self.quant {
            None | Some(Quant::Int8) => &[Quant::Q8_0, Quant::Q4_0][..],
            Some(Quant::Q8_0) => &[Quant::Q4_0],
            Some(Quant::Q4_0) => &[],
        };
        let mut others = Vec::new();
        for quant in smaller {
            let Some(kind) = quant.blocks() else { continue };
            let files = self.files.clone().quantised(kind);
            let measured = files.measure(HeadCounts::default())?;
            others.push((format!("--quant {}", quant.name()), need_of(&measured, work)));
        }
        if let Some(less) = bound.and_then(|b| b.fitting(limit, |work| need_of(&measured, work))) {
            others.insert(0, less);
        }
        memory::check_limit(limit, &need, &others)
    }

    /// Loads it for some work.
    pub(crate) fn open(self, global: &Global, work: Work) -> Result<Session, Failure> {
        self.check_memory(global, work, None)?;
        self.load(global)
    }

    /// The same for the work of an option that bounds it.
    pub(crate) fn open_within(self, global: &Global, bound: &Bound) -> Result<Session, Failure> {
        self.check_memory(global, (bound.work)(bound.most), Some(bound))?;
        self.load(global)
    }

    fn load(self, global: &Global) -> Result<Session, Failure> {
        let started = Instant::now();
        let class_names = class_names(&self.dir().join("config.json"));
        let tokenizer_file = self.files.tokenizer_file();
        let reader = match self.files.family() {
            Family::TransformersClip | Family::OpenClip | Family::OpenAiClip => {
                Reader::Clip(Box::new(self.files.tokenizer()?))
            }
            _ if self.files.has_bert_tokenizer() => {
                Reader::Bert(self.files.bert_tokenizer()?, self.files.context_length()?)
            }
            Family::Ocelli if self.files.context_length().is_ok() => {
                Reader::Clip(Box::new(self.files.tokenizer()?))
            }
            _ => Reader::None,
        };
        let opened = self.files.open(HeadCounts::default())?;
        if let Some(kind) = self.narrow {
            opened.parameters.narrow(kind);
        }
        global.detail(|| {
            let (path, kind, family) =
                (opened.path.display(), opened.model.kind(), opened.family.name());
            let time = started.elapsed().as_secs_f64() * 1e3;
            format!("{path}: {kind} ({family}), loaded in {time:.0} ms")
        });
        Ok(Session { opened, reader, class_names, tokenizer_file })
    }
}

/// Finds the model that a command asks for.
pub(crate) fn find(global: &Global, args: &ModelArgs) -> Result<Source, Failure> {
    let Some(model) = &args.model else {
        for (flag, is_given) in [("--lora", !args.lora.is_empty()), ("--base", args.base.is_some())]
        {
            if is_given {
                let what = format!("{flag} belongs to a model of files; name one by -m");
                return Err(Failure::usage(what));
            }
        }
        let (files, narrow) = (in_blocks(Files::builtin()?, args), args.narrow());
        return Ok(Source { files, path: PathBuf::new(), narrow, quant: args.quant });
    };
    let path = resolve(global, model)?;
    let base = args.base.as_deref().map(|base| resolve(global, base)).transpose()?;
    let mut files = Files::find_on(&path, None, base.as_deref())?;
    for adapter in &args.lora {
        let (dir, scale) = adapter_of(adapter)?;
        files = files.with_adapter(&resolve(global, dir)?, scale)?;
    }
    let files = in_blocks(files, args);
    Ok(Source { files, path, narrow: args.narrow(), quant: args.quant })
}

/// The same with weights in the blocks that were asked for.
fn in_blocks(files: Files, args: &ModelArgs) -> Files {
    match args.quant.and_then(Quant::blocks) {
        Some(kind) => files.quantised(kind),
        None => files,
    }
}

/// A folder of changes, and how often they count.
fn adapter_of(text: &str) -> Result<(&str, f32), Failure> {
    let Some((dir, scale)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok((text, 1.0));
    };
    let scale = scale.parse().ok().filter(|scale: &f32| scale.is_finite());
    let scale = scale.ok_or_else(|| {
        Failure::usage(format!("--lora {text}: expected PATH or PATH=SCALE, such as lora=0.5"))
    })?;
    Ok((dir, scale))
}

/// Turns texts into ids.
pub(crate) enum Tokenizer {
    /// With the most tokens of a text.
    Clip(Box<ClipTokenizer>, usize),
    /// With the most tokens of a text.
    Bert(BertTokenizer, usize),
    /// Of a language model, whose texts are never cut.
    Language(Box<text::Tokenizer>),
}

/// The tokenizer of a model, by the rules of its family unless told otherwise. Needs no weights; a
/// folder with a vocabulary alone is read by what its files say, or by CLIP's original rules.
pub(crate) fn tokenizer(
    global: &Global,
    args: &ModelArgs,
    behaviour: Option<Behaviour>,
) -> Result<Tokenizer, Failure> {
    let source = match find(global, args) {
        Ok(source) => source,
        Err(failure) => {
            let dir = args.model.as_deref().map(Path::new).filter(|dir| dir.is_dir());
            let Some(dir) = dir else { return Err(failure) };
            if behaviour.is_none()
                && let Some(tokenizer) = language_tokenizer(dir)?
            {
                return Ok(tokenizer);
            }
            if !has_vocabulary(dir) {
                return Err(failure);
            }
            let behaviour = behaviour.unwrap_or(Behaviour::OpenAi);
            let tokenizer = ocelli_models::tokenizer(dir, behaviour)?;
            return Ok(Tokenizer::Clip(Box::new(tokenizer), CLIP_CONTEXT));
        }
    };
    if source.files.has_bert_tokenizer() {
        return Ok(Tokenizer::Bert(source.files.bert_tokenizer()?, source.files.context_length()?));
    }
    let is_clip = matches!(
        source.files.family(),
        Family::TransformersClip | Family::OpenClip | Family::OpenAiClip | Family::Ocelli
    );
    if !is_clip
        && behaviour.is_none()
        && let Some(tokenizer) = language_tokenizer(source.dir())?
    {
        return Ok(tokenizer);
    }
    let tokenizer = match behaviour {
        Some(behaviour) => ocelli_models::tokenizer(source.dir(), behaviour)?,
        None => source.files.tokenizer()?,
    };
    Ok(Tokenizer::Clip(Box::new(tokenizer), source.files.context_length()?))
}

/// The tokenizer of a folder, unless it has none or one of CLIP's kind.
fn language_tokenizer(dir: &Path) -> Result<Option<Tokenizer>, Failure> {
    match text::Tokenizer::from_dir(dir) {
        Ok(tokenizer) => Ok(Some(Tokenizer::Language(Box::new(tokenizer)))),
        Err(TextError::NoTokenizer { .. } | TextError::EndsWords { .. }) => Ok(None),
        Err(error) => Err(ocelli_models::Error::from(ocelli_data::Error::from(error)).into()),
    }
}

/// The `SentencePiece` model of a folder by its own rules.
pub(crate) fn sentencepiece(dir: &Path) -> Result<text::Tokenizer, Failure> {
    let path = ["tokenizer.model", "spiece.model"].map(|name| dir.join(name));
    let Some(path) = path.iter().find(|path| path.is_file()) else {
        let what = format!("{} has no tokenizer.model or spiece.model", dir.display());
        return Err(Failure::model(what));
    };
    let tokenizer = text::Tokenizer::open_sentencepiece(path).map_err(ocelli_data::Error::from);
    Ok(tokenizer.map_err(ocelli_models::Error::from)?)
}

fn has_vocabulary(dir: &Path) -> bool {
    ["tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz"]
        .iter()
        .any(|file| dir.join(file).is_file())
}

/// The path of a model that may have to be fetched first.
pub(crate) fn resolve(global: &Global, model: &str) -> Result<PathBuf, Failure> {
    if !Path::new(model).exists() && !is_hub_id(model) {
        return Err(nowhere(model));
    }
    let bar: RefCell<Option<(String, ProgressBar)>> = RefCell::new(None);
    let quiet = std::env::var_os("HF_HUB_DISABLE_PROGRESS_BARS").is_some_and(|v| v == "1");
    let draw = !quiet && global.has_bar(false);
    let progress = |file: &str, arrived: u64, size: u64| {
        let mut bar = bar.borrow_mut();
        if bar.as_ref().is_none_or(|(name, _)| name != file) {
            *bar = Some((file.to_owned(), download_bar(file, size, draw)));
        }
        if let Some((_, bar)) = &*bar {
            bar.set_position(arrived);
        }
    };
    let options = HubOptions {
        offline: global.offline,
        cache_dir: global.cache_dir.clone(),
        revision: global.revision.clone(),
        token_env: global.token_env.clone(),
        progress: Some(&progress),
    };
    Ok(hub::resolve(model, &options)?)
}

/// Whether this may be `org/name[@revision]`.
fn is_hub_id(model: &str) -> bool {
    let id = model.split('@').next().unwrap_or_default();
    id.split('/').count() == 2 && !id.starts_with(['.', '/', '~']) && !id.ends_with('/')
}

/// That a name is neither a path nor a hub id, with the nearest name that is one.
fn nowhere(model: &str) -> Failure {
    let path = Path::new(model);
    let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
    let name = name.unwrap_or_default().to_string_lossy();
    let folder = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let beside = folder.read_dir().into_iter().flatten().flatten().take(MOST_NAMES).map(|entry| {
        let found = entry.file_name().to_string_lossy().into_owned();
        (found.clone(), parent.join(found).display().to_string())
    });
    let sizes = shapes::NAMES.iter().map(|shape| ((*shape).to_owned(), format!("--shape {shape}")));
    let likeness = |found: &str| {
        strsim::normalized_damerau_levenshtein(&found.to_lowercase(), &name.to_lowercase())
    };
    let nearest = beside
        .chain(sizes)
        .map(|(found, said)| (likeness(&found), said))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.map_or_else(
        || "check the spelling".to_owned(),
        |(_, said)| format!("did you mean {said}?"),
    );
    Failure::model(format!(
        "{model}: no such file or folder, and a model of the hub is called org/name; {hint}"
    ))
}

fn download_bar(file: &str, size: u64, draw: bool) -> ProgressBar {
    if !draw {
        return ProgressBar::hidden();
    }
    let template = "{bar:32} {binary_bytes}/{binary_total_bytes} {msg}, {binary_bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is sound");
    ProgressBar::new(size).with_style(style).with_message(file.to_owned())
}

/// How a model reads text.
enum Reader {
    None,
    Clip(Box<ClipTokenizer>),
    /// With the most tokens of a text.
    Bert(BertTokenizer, usize),
}

/// A model that is ready.
pub(crate) struct Session {
    pub(crate) opened: Opened,
    reader: Reader,
    /// What the configuration calls the classes, if it does.
    class_names: BTreeMap<usize, String>,
    tokenizer_file: PathBuf,
}

impl Session {
    /// That this model is of the wrong kind.
    pub(crate) fn unsuitable(&self, what: &'static str, needs: &'static str) -> Failure {
        let is = self.opened.model.kind().to_owned();
        ocelli_models::Error::Unsuitable { what, needs, is }.into()
    }

    /// The tokenizer of this model, unless it has words that the model has not. Tokens that were added
    /// to a vocabulary may be more: only a text that spells one out needs it.
    pub(crate) fn fitting(&self, tokenizer: text::Tokenizer) -> Result<text::Tokenizer, Failure> {
        let tokens = tokenizer.pieces();
        match self.opened.words() {
            Some(words) if tokens > words => Err(Failure::model(format!(
                "{}: its vocabulary has {tokens} tokens, the word table of {} has {words}; put the \
                 tokenizer of this model beside it",
                self.tokenizer_file.display(),
                self.opened.path.display()
            ))),
            _ => Ok(tokenizer),
        }
    }

    /// What cosines of pictures and texts are multiplied by, if the model compares them.
    pub(crate) fn temperature(
        &self,
        what: &'static str,
        needs: &'static str,
    ) -> Result<f32, Failure> {
        let scale = match &self.opened.model {
            Model::Clip(clip) => clip.logit_scale(),
            Model::Lit(lit) => lit.logit_scale(),
            _ => return Err(self.unsuitable(what, needs)),
        };
        Ok(scale.tensor().item()?.exp())
    }

    /// The names of the classes of a model with a head for them.
    pub(crate) fn classes(&self) -> Option<Vec<String>> {
        let head = match &self.opened.model {
            Model::Vit(vit) => vit.config().head,
            Model::Hybrid(hybrid) => hybrid.vit.config().head,
            Model::LocalVit(vit) => Head::Classes(vit.config().classes),
            Model::NfNet(model) if model.config().classes > 0 => {
                Head::Classes(model.config().classes)
            }
            _ => Head::None,
        };
        let (Head::Classes(n) | Head::AverageClasses(n)) = head else { return None };
        let name = |i: usize| self.class_names.get(&i).cloned().unwrap_or_else(|| i.to_string());
        Some((0..n).map(name).collect())
    }

    /// The logits of a model with classes, `[batch, classes]`, for normalised pixels.
    pub(crate) fn logits(&self, pixels: &Tensor) -> Result<Tensor, Failure> {
        let logits = match &self.opened.model {
            Model::Vit(vit) => vit.forward(pixels)?,
            Model::Hybrid(hybrid) => hybrid.forward(pixels)?,
            Model::LocalVit(vit) => vit.forward(pixels)?,
            Model::NfNet(model) if model.config().classes > 0 => model.forward(pixels)?,
            _ => {
                return Err(self.unsuitable("classification without labels", "a ViT with classes"));
            }
        };
        finite(logits, "the logits")
    }

    /// One vector of length 1 per picture, `[batch, width]`, for normalised pixels.
    pub(crate) fn embed_images(&self, pixels: &Tensor) -> Result<Tensor, Failure> {
        vectors::of_pictures(&self.opened.model, pixels)
    }

    /// One vector per text, of any length, `[texts, width]`. Texts that do not fit are cut.
    pub(crate) fn encode_texts(&self, texts: &[String]) -> Result<Tensor, Failure> {
        let features = match (&self.opened.model, &self.reader) {
            (Model::Clip(clip), Reader::Clip(tokenizer)) => {
                let c = &clip.config().text;
                let (context, has) = (c.context_length, tokenizer.vocab_size());
                if has > c.vocab {
                    let reason = format!(
                        "{} words in the table, where the vocabulary has {has} tokens; put the \
                         model's own beside it, as tokenizer.json or vocab.json with merges.txt",
                        c.vocab
                    );
                    let (file, field) = (self.opened.path.clone(), "vocab_size".to_owned());
                    return Err(ocelli_models::Error::Config { file, field, reason }.into());
                }
                // What follows a text's end changes nothing, so the longest text decides.
                let lengths = texts.iter().map(|t| tokenizer.encode_raw(t).len() + 2);
                let tokens = lengths.max().unwrap_or(2).min(context);
                let mut ids = Vec::with_capacity(texts.len() * tokens);
                for text in texts {
                    let text = tokenizer.encode(text, tokens, Truncate::Cut);
                    ids.extend(text.map_err(ocelli_data::Error::from)?);
                }
                clip.encode_text(&Arc::from(ids), texts.len())?
            }
            (model, Reader::Bert(..)) => {
                let batch = self.read(texts)?;
                match model {
                    Model::Bert(bert) => bert.sentences(&batch)?,
                    Model::Lit(lit) => lit.encode_text(&batch)?,
                    Model::Blip(blip) => {
                        blip.embed_texts(&blip.encoder()?.features(&batch, None)?)?
                    }
                    _ => return Err(self.unsuitable("reading text", "a BERT or a LiT")),
                }
            }
            _ => return Err(self.unsuitable("reading text", "a CLIP, a LiT or a BERT")),
        };
        finite(features, "the embeddings of texts")
    }

    /// Texts as a BERT reads them. Those that do not fit are cut.
    pub(crate) fn read(&self, texts: &[String]) -> Result<Texts, Failure> {
        let Reader::Bert(tokenizer, context) = &self.reader else {
            return Err(self.unsuitable("reading text", "a BERT, or what is built on one"));
        };
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let batch = tokenizer.encode_batch(&texts, *context, Truncate::Cut);
        Ok(Texts::from(&batch.map_err(ocelli_data::Error::from)?))
    }
}
