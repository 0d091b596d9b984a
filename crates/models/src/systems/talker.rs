//! Talking about pictures: systems whose language model reads image tokens among the words.

use super::writer::{Request, Writer};
use crate::connector::splice::{IMAGE, Spliced};
use crate::generate::{Answer, Cache, Flow, Prompt, Settings, generate};
use crate::language::causal::CausalModel;
use crate::{Error, Result};
use ocelli_data::text::{BoxNotation, IMAGE_MARK, Template, Tokenizer};
use ocelli_tensor::{Tensor, no_grad};

/// Tokens of an answer where nothing is said.
const USUAL_TOKENS: usize = 512;

/// A system whose language model reads pictures among words.
pub trait Talker {
    /// The language model.
    fn language(&self) -> &dyn CausalModel;

    /// What the language model is shown of each picture of normalised `pixels`
    /// `[batch, 3, img_h, img_w]`, `[image tokens, width]` each. A Flamingo looks at videos as well,
    /// `[batch, frames, 3, img_h, img_w]`.
    ///
    /// # Errors
    /// If the shape of the pixels does not suit the tower.
    fn pictures(&self, pixels: &Tensor) -> Result<Vec<Tensor>>;

    /// The name of the conversation template that it was tuned with.
    fn template(&self) -> &'static str;

    /// How it reads a text with pictures.
    fn reading(&self) -> Reading {
        Reading::default()
    }

    /// Ids of a text with one [`IMAGE`] for each [`IMAGE_MARK`], as it was tuned to read them.
    fn ids(&self, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        ids(tokenizer, text, self.reading())
    }

    /// How it writes where things are, if it was tuned to.
    fn boxes(&self) -> Option<&'static BoxNotation> {
        None
    }

    /// How it was tuned to be asked.
    fn instruction(&self, request: &Request) -> String;
}

/// The image tokens of each picture of `tokens` `[batch, image tokens, width]`.
pub(super) fn one_by_one(tokens: &Tensor) -> Result<Vec<Tensor>> {
    let &[batch, rows, width] = &tokens.shape()[..] else { return Ok(Vec::new()) };
    let one = |i| Ok(tokens.narrow(0, i, 1)?.reshape(&[rows, width])?);
    (0..batch).map(one).collect()
}

/// How a system reads a text with pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Text behind a picture goes on, as transformers reads it; else it begins anew, as in the
    /// original code of LLaVA and MiniGPT.
    pub goes_on: bool,
    /// What stands around each picture, tokens of their own.
    pub around: Option<[&'static str; 2]>,
}

/// Ids of a text with one [`IMAGE`] for each [`IMAGE_MARK`]. The token that begins a text comes once.
pub fn ids(tokenizer: &Tokenizer, text: &str, reading: Reading) -> Vec<u32> {
    let framed = reading
        .around
        .map(|[before, behind]| text.replace(IMAGE_MARK, &[before, IMAGE_MARK, behind].concat()));
    let mut all = Vec::new();
    for (i, words) in framed.as_deref().unwrap_or(text).split(IMAGE_MARK).enumerate() {
        if i == 0 {
            all.extend(text_ids(tokenizer, words));
            continue;
        }
        all.push(IMAGE);
        all.extend(if reading.goes_on {
            tokenizer.encode_behind(words)
        } else {
            tokenizer.encode(words, false)
        });
    }
    all
}

/// Ids of a prompt without pictures. A template may spell out the token that begins a text, which
/// comes once all the same.
pub fn text_ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let start = tokenizer.named().start.and_then(|id| tokenizer.token(id));
    tokenizer.encode(text, start.is_none_or(|start| !text.starts_with(start)))
}

/// What a language model reads of `ids` with one [`IMAGE`] for each picture: among the words, or aside
/// from them.
///
/// # Errors
/// If there are more or fewer pictures than places, or an id is not in the vocabulary.
pub fn prompt(language: &dyn CausalModel, ids: &[u32], pictures: &[Tensor]) -> Result<Prompt> {
    match language.place_token() {
        Some(token) => beside(language, token, ids, pictures),
        None => Ok(Spliced::new(language, ids, None, pictures)?.into()),
    }
}

/// A prompt whose pictures are looked at from the tokens `place` on.
fn beside(
    language: &dyn CausalModel,
    place: u32,
    ids: &[u32],
    pictures: &[Tensor],
) -> Result<Prompt> {
    let places: Vec<usize> = (0..ids.len()).filter(|i| ids[*i] == IMAGE).collect();
    if places.len() != pictures.len() {
        return Err(Error::ImageCount { places: places.len(), images: pictures.len() });
    }
    if ids.is_empty() {
        return Err(Error::EmptyPrompt { index: 0 });
    }
    let word = |id: &u32| if *id == IMAGE { place } else { *id };
    let ids: Vec<u32> = ids.iter().map(word).collect();
    let shown = places.into_iter().zip(pictures.iter().cloned()).collect();
    Ok(Prompt { embeddings: language.embed(&ids)?, ids, image_tokens: 0, shown })
}

/// A conversation as a language model has read it.
#[derive(Debug)]
pub struct Conversation {
    /// What the cache holds, a picture as one [`IMAGE`].
    read: Vec<u32>,
    cache: Cache,
}

impl Conversation {
    /// One that has not begun.
    pub fn new(language: &dyn CausalModel) -> Self {
        Self { read: Vec::new(), cache: language.new_cache(1) }
    }

    /// Answers `ids` with its `pictures`, one for each [`IMAGE`]. What the last turns have in common
    /// with it is not read again; pictures that were shown stay what they were.
    ///
    /// # Errors
    /// If there are more or fewer pictures than places, or the text leaves no room for an answer.
    pub fn answer(
        &mut self,
        language: &dyn CausalModel,
        ids: &[u32],
        pictures: &[Tensor],
        settings: &Settings,
        on_token: &mut dyn FnMut(u32) -> Flow,
    ) -> Result<Answer> {
        no_grad(|| {
            let all = prompt(language, ids, pictures)?;
            let looks = language.place_token().is_some();
            // At least one token is read, as an answer begins behind it.
            let most = ids.len().saturating_sub(1);
            let goes_on = language.goes_on(&self.cache, all.embeddings.shape().rows());
            let most = if goes_on { most } else { 0 };
            let same = self.read.iter().zip(&ids[..most]).take_while(|(a, b)| a == b).count();
            let seen = ids[..same].iter().filter(|id| **id == IMAGE).count();
            let rows = |pictures: &[Tensor]| {
                pictures.iter().map(|p| if looks { 1 } else { p.shape().rows() }).sum::<usize>()
            };
            let past = same - seen + rows(&pictures[..seen]);
            self.cache.truncate(0, past);
            self.read.truncate(same);
            let tokens = all.embeddings.shape().rows();
            let prompt = Prompt {
                embeddings: all.embeddings.narrow(0, past, tokens - past)?,
                image_tokens: all.image_tokens,
                ids: all.ids,
                shown: all.shown,
            };
            let mut tell = |_: usize, id: u32| on_token(id);
            let prompts = std::slice::from_ref(&prompt);
            let answers = generate(language, prompts, &mut self.cache, settings, &mut tell);
            let mut answers = match answers {
                Ok(answers) => answers,
                Err(error) => {
                    *self = Self::new(language);
                    return Err(error);
                }
            };
            let answer = answers.swap_remove(0);
            self.read.extend_from_slice(&ids[same..]);
            // The last token was chosen, never read.
            let held = self.cache.lens()[0].saturating_sub(tokens);
            self.read.extend_from_slice(&answer.ids[..held.min(answer.ids.len())]);
            Ok(answer)
        })
    }
}

impl<T: Talker> Writer for T {
    fn usual(&self, _: &Request) -> Settings {
        Settings::greedy(USUAL_TOKENS, &[])
    }

    fn stops(&self) -> Vec<String> {
        let template = Template::named(self.template());
        template.iter().flat_map(|t| t.stops()).map(str::to_owned).collect()
    }

    fn write(
        &self,
        pixels: &Tensor,
        request: &Request,
        tokenizer: &Tokenizer,
        settings: &Settings,
        on_token: &mut dyn FnMut(usize, u32) -> Flow,
    ) -> Result<Vec<Answer>> {
        write_after(self, &[], (pixels, request), tokenizer, settings, on_token)
    }
}

/// An example that is shown before what is asked (Brown et al. 2020, arXiv:2005.14165, §2; with
/// pictures arXiv:2204.14198, §3.3).
#[derive(Clone, Debug)]
pub struct Shot {
    /// What the language model is shown of its picture; none for an example of text alone.
    pub picture: Option<Tensor>,
    /// What is asked of it; without a question it is a caption.
    pub question: Option<String>,
    /// The answer.
    pub answer: String,
}

/// [`Writer::write`] behind examples, a list for each picture; those without one have none.
///
/// # Errors
/// As there.
pub fn write_after(
    talker: &dyn Talker,
    shots: &[Vec<Shot>],
    (pixels, request): (&Tensor, &Request),
    tokenizer: &Tokenizer,
    settings: &Settings,
    on_token: &mut dyn FnMut(usize, u32) -> Flow,
) -> Result<Vec<Answer>> {
    let language = talker.language();
    let one = |(i, picture): (usize, Tensor)| {
        let shots = shots.get(i).map_or(&[][..], Vec::as_slice);
        let ids = talker.ids(tokenizer, &asked(talker, shots, request));
        let examples = shots.iter().filter_map(|shot| shot.picture.clone());
        let pictures: Vec<Tensor> = examples.chain([picture]).collect();
        prompt(language, &ids, &pictures)
    };
    no_grad(|| {
        let pictures = talker.pictures(pixels)?.into_iter().enumerate();
        let prompts: Vec<Prompt> = pictures.map(one).collect::<Result<_>>()?;
        let mut cache = language.new_cache(prompts.len());
        generate(language, &prompts, &mut cache, settings, on_token)
    })
}

/// The text that asks for something about one picture behind examples.
fn asked(talker: &dyn Talker, shots: &[Shot], request: &Request) -> String {
    let Some(template) = Template::named(talker.template()) else {
        return talker.instruction(request);
    };
    let mut turns = Vec::new();
    for shot in shots {
        let request = shot.question.as_deref().map_or(Request::Caption(None), Request::Answer);
        let pictures = usize::from(shot.picture.is_some());
        turns.extend(template.show(pictures, &talker.instruction(&request)));
        if let Some(turn) = turns.last_mut() {
            turn.answer = Some(shot.answer.clone());
        }
    }
    turns.extend(template.show(1, &talker.instruction(request)));
    template.render(&turns)
}
