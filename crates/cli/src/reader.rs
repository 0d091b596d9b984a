//! How the prompts of `ocelli generate` reach what writes behind them.

use crate::failure::Failure;
use crate::session::Session;
use ocelli_data::text::{IMAGE_MARK, Tokenizer};
use ocelli_models::Model;
use ocelli_models::generate::{Cache, Decoder, Prompt};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::language::t5::T5;
use ocelli_models::systems::blip2::Blip2;
use ocelli_models::systems::talker::{self, Talker, text_ids};
use ocelli_models::systems::writer::{Request, Writer};
use ocelli_tensor::{Tensor, no_grad};
use std::time::{Duration, Instant};

/// How a model reads prompts.
pub(crate) enum Reader<'a> {
    /// Pictures among words; of each, what the language model is shown.
    Talker(&'a dyn Talker, Vec<Tensor>),
    /// Words from left to right.
    Causal(&'a dyn CausalModel),
    /// Words, by an encoder.
    Encoder(&'a T5),
    /// The picture of these pixels before the words, by queries.
    Queries(&'a Blip2, Tensor),
}

/// What a decoder goes on from.
pub(crate) struct Asked<'a> {
    pub(crate) decoder: &'a dyn Decoder,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) cache: Cache,
    /// What is read of each prompt.
    pub(crate) read: Vec<Read>,
    /// What encoders took.
    pub(crate) encoding: Duration,
}

/// Tokens of a prompt.
#[derive(Clone, Copy)]
pub(crate) struct Read {
    /// Pictures included.
    pub(crate) tokens: usize,
    pub(crate) image_tokens: usize,
}

impl<'a> Reader<'a> {
    /// The reader of a model that is shown pictures of these pixels `[1, 3, img_h, img_w]`.
    pub(crate) fn of(session: &'a Session, pictures: &[Tensor]) -> Result<Self, Failure> {
        let model = &session.opened.model;
        if let Some(talker) = model.talker() {
            let mut shown = Vec::new();
            for pixels in pictures {
                shown.extend(no_grad(|| talker.pictures(pixels))?);
            }
            return Ok(Self::Talker(talker, shown));
        }
        let reader = match (model, model.causal()) {
            (_, Some(causal)) => Self::Causal(causal),
            (Model::T5(model), _) => Self::Encoder(model),
            (Model::Blip2(model), _) if model.config().writing.is_some() => {
                let [pixels] = pictures else {
                    return Err(Failure::usage(format!(
                        "--image: this model reads one picture with each prompt, {} are given; \
                         give one",
                        pictures.len()
                    )));
                };
                return Ok(Self::Queries(model, pixels.clone()));
            }
            (Model::Blip(_), _) => {
                return Err(session.unsuitable(
                    "going on from a prompt",
                    "a language model (`ocelli caption` and `ocelli vqa` ask a BLIP)",
                ));
            }
            _ => return Err(session.unsuitable("going on from a prompt", "a language model")),
        };
        if pictures.is_empty() {
            return Ok(reader);
        }
        Err(session.unsuitable("--image", "a model that reads pictures"))
    }

    /// The tokens that end its answers, if it knows them by itself.
    pub(crate) fn ends(&self) -> Vec<u32> {
        match self {
            Self::Queries(model, _) => model.usual(&Request::Caption(None)).eos,
            _ => Vec::new(),
        }
    }

    /// That it can be given a conversation.
    pub(crate) fn check_chat(&self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Talker(..) | Self::Causal(_) => Ok(()),
            _ => Err(session.unsuitable("--chat", "a language model that holds conversations")),
        }
    }

    /// Reads `texts`. `begins` says that they came out of a template, which may spell out the token
    /// that begins a text.
    pub(crate) fn read(
        &self,
        texts: &[String],
        tokenizer: &Tokenizer,
        begins: bool,
    ) -> Result<Asked<'a>, Failure> {
        let started = Instant::now();
        match self {
            Self::Queries(model, pixels) => {
                // The picture stands in front, marked or not.
                let bare = |text: &String| {
                    text.strip_prefix(IMAGE_MARK).unwrap_or(text).trim_start().to_owned()
                };
                let texts: Vec<String> = texts.iter().map(bare).collect();
                if texts.iter().any(|text| text.contains(IMAGE_MARK)) {
                    return Err(Failure::usage(format!(
                        "this model reads its picture before the words; put {IMAGE_MARK} in front \
                         or leave it out"
                    )));
                }
                let image_tokens = model.config().qformer.queries;
                let read = |text: &String| Read {
                    tokens: image_tokens + tokenizer.encode(text, true).len(),
                    image_tokens,
                };
                let (prompts, cache) = model.asked(pixels, &texts, tokenizer)?;
                let (decoder, encoding) = (model.decoder()?, started.elapsed());
                let read = texts.iter().map(read).collect();
                Ok(Asked { decoder, prompts, cache, read, encoding })
            }
            Self::Encoder(model) => {
                let (mut embeddings, mut read) = (Vec::new(), Vec::new());
                for text in texts {
                    let ids = tokenizer.encode(text, true);
                    read.push(Read { tokens: ids.len(), image_tokens: 0 });
                    embeddings.push(Decoder::embed(*model, &ids)?);
                }
                let (prompts, cache) = model.prompts(&embeddings)?;
                Ok(Asked { decoder: *model, prompts, cache, read, encoding: started.elapsed() })
            }
            Self::Talker(talker, pictures) => {
                let ids = |text: &String| talker.ids(tokenizer, text);
                Self::spliced(talker.language(), texts.iter().map(ids), pictures)
            }
            Self::Causal(model) => {
                let ids = |text: &String| {
                    if begins { text_ids(tokenizer, text) } else { tokenizer.encode(text, true) }
                };
                Self::spliced(*model, texts.iter().map(ids), &[])
            }
        }
    }

    fn spliced(
        language: &'a dyn CausalModel,
        texts: impl Iterator<Item = Vec<u32>>,
        pictures: &[Tensor],
    ) -> Result<Asked<'a>, Failure> {
        let (mut prompts, mut read) = (Vec::new(), Vec::new());
        for ids in texts {
            if ids.is_empty() {
                return Err(Failure::usage("the prompt is empty; give at least one word by -i"));
            }
            let prompt = talker::prompt(language, &ids, pictures)?;
            let image_tokens = prompt.image_tokens;
            read.push(Read { tokens: prompt.ids.len() + image_tokens, image_tokens });
            prompts.push(prompt);
        }
        let cache = language.new_cache(prompts.len());
        Ok(Asked { decoder: language, prompts, cache, read, encoding: Duration::ZERO })
    }
}
