//! How texts are prepared for a model, and where they end.

use super::fields::Fields;
use super::{
    Family, Files, bert_config, blip_config, blip2_config, blip2_parts, builtin, flamingo_parts,
    gguf_config, qwen_vl_config, read_json, xcomposer_config,
};
use crate::Result;
use crate::systems::lit::LitConfig;
use ocelli_data::text::{Behaviour, BertTokenizer, ChatTemplate, ClipTokenizer, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

impl Files {
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
        if self.family == Family::Flamingo {
            let stated = self.config.get("eoc_token_id").and_then(Value::as_u64);
            let end = stated.and_then(|id| u32::try_from(id).ok());
            let token = || flamingo_parts::token(self.dir(), flamingo_parts::END_TOKEN);
            return Ok(vec![end.map_or_else(token, Ok)?]);
        }
        let file = self.dir().join("generation_config.json");
        let own = if file.is_file() { read_json(&file)? } else { Value::Null };
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let of = |config: &Value| match config.get("eos_token_id")? {
            Value::Array(list) => Some(list.iter().filter_map(id).collect()),
            one => Some(vec![id(one)?]),
        };
        let mut ends: Vec<u32> = of(&own).or_else(|| of(&self.config)).unwrap_or_default();
        match self.family {
            Family::QwenVl => ends.extend(qwen_vl_config::end_tokens(&self.config)),
            Family::XComposer => ends.extend(xcomposer_config::end_tokens(&self.config)),
            _ => {}
        }
        Ok(ends)
    }

    /// The tokenizer of a language model. Needs no weights.
    ///
    /// # Errors
    /// If there is no tokenizer file, or it cannot be read.
    pub fn language_tokenizer(&self) -> Result<Tokenizer> {
        if self.family == Family::Gguf {
            return gguf_config::tokenizer(&self.config, &self.path);
        }
        let tokenizer = Tokenizer::from_dir(&self.tokenizer_dir());
        let tokenizer = tokenizer.map_err(ocelli_data::Error::from)?;
        Ok(if self.family == Family::Flamingo {
            flamingo_parts::with_added(tokenizer)
        } else {
            tokenizer
        })
    }

    /// The folder of the tokenizer of a language model.
    fn tokenizer_dir(&self) -> PathBuf {
        if self.family == Family::Flamingo
            && let Some(apart) = flamingo_parts::language_dir(self.dir())
        {
            return apart;
        }
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
        let names = [
            "tokenizer.json",
            "tokenizer.model",
            "spiece.model",
            "ice_text.model",
            "qwen.tiktoken",
            "vocab.json",
            "vocab.txt",
        ];
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
