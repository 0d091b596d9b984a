//! Interleaved composition: an article with pictures where they belong.
//!
//! Zhang et al. 2023, "InternLM-XComposer", arXiv:2309.15112, with the prompts and the searches of the
//! published demonstration. The model writes an article for a title, or takes one; says behind which of
//! its numbered lines pictures belong; writes a caption for each; and chooses among the pictures that were
//! found by the caption, with those that it chose before in their places. Who finds them is an [`Album`].
//! Leaves out the stops of other conversations (`###`) that the demonstration looks for too.

use crate::connector::splice::IMAGE;
use crate::generate::{
    Beams, Decoder, EarlyStopping, Flow, Prompt, Rows, Settings, Strategy, generate,
};
use crate::systems::talker::{Talker, prompt};
use crate::{Error, Result};
use ocelli_data::text::Tokenizer;
use ocelli_tensor::{Tensor, no_grad};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends what the user says, and what the model says.
const ENDS: [&str; 2] = ["<TOKENS_UNUSED_0>", "<TOKENS_UNUSED_1>"];
/// Texts side by side where the demonstration searches.
const BEAMS: usize = 5;
/// Tokens of an article, of the places in it and of a caption at most.
const ARTICLE_TOKENS: usize = 1000;
const PLACES_TOKENS: usize = 300;
const CAPTION_TOKENS: usize = 100;
/// How much less likely articles and captions make what they said.
const REPETITION: f32 = 5.0;
/// Pictures that are offered for a place.
pub const CANDIDATES: usize = 4;

/// An article as the model reads it: its lines, none of them blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Article {
    lines: Vec<String>,
}

impl Article {
    /// The lines of a text.
    pub fn new(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Self { lines: lines.map(str::to_owned).collect() }
    }

    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The first `lines` lines with their numbers, as they are asked about.
    fn numbered(&self, lines: usize) -> String {
        let number = |(i, line): (usize, &String)| format!("<Seg{i}> {line}\n");
        self.lines.iter().take(lines).enumerate().map(number).collect()
    }
}

/// What a picture behind a line is to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    /// The number of the line, from 0.
    pub line: usize,
    /// The caption.
    pub text: String,
}

/// A picture in an article.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it was to show, and behind which line.
    pub caption: Caption,
    /// Its number in the album.
    pub picture: usize,
    /// The numbers of all that were offered, in the order of their letters.
    pub candidates: Vec<usize>,
}

/// Asks for an article.
pub fn writing_prompt(title: &str) -> String {
    let end = ENDS[0];
    format!(" <|User|>:根据给定标题写一个图文并茂，不重复的文章：{title}\n{end} <|Bot|>:")
}

/// Asks for the lines that `images` pictures belong behind; as many as there are, if nothing is said.
pub fn spotting_prompt(article: &Article, images: Option<usize>) -> String {
    let (all, end) = (article.numbered(usize::MAX), ENDS[0]);
    let images = images.map(|n| n.to_string()).unwrap_or_default();
    format!(
        " <|User|>:给定文章\"{all}\" 根据上述文章，选择适合插入图像的{images}行 \n{end} \
         <|Bot|>:适合插入图像的行是"
    )
}

/// The numbers of `lines` lines that a reply names, each once, in its order; at most `most`.
pub fn spots(reply: &str, lines: usize, most: Option<usize>) -> Vec<usize> {
    let mut found = Vec::new();
    for part in reply.split("<Seg").skip(1) {
        let number = part.split_once('>').map(|(number, _)| number);
        let number = number.filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let number = number.and_then(|n| n.parse().ok());
        found.extend(number.filter(|n| *n < lines && !found.contains(n)));
    }
    found.truncate(most.unwrap_or(usize::MAX));
    found
}

/// Asks for the caption of a picture behind a line, after `earlier` ones.
pub fn captioning_prompt(article: &Article, earlier: &[Caption], line: usize) -> String {
    let said = |c: &Caption| format!("<Seg{}>后插入图像对应的标题是\"{}\"", c.line, c.text);
    let earlier: Vec<String> = earlier.iter().map(said).collect();
    let earlier = match earlier.join("， ") {
        none if none.is_empty() => none,
        said => format!("现在{said}。"),
    };
    // One more line than those before the picture.
    let (read, end) = (article.numbered(line.saturating_add(2)), ENDS[0]);
    format!(
        " <|User|>: 给定文章\"{read}\" {earlier}给出适合在<Seg{line}>后插入的图像对应的标题。 \n{end} \
         <|Bot|>: 标题是\""
    )
}

/// Asks which of `candidates` pictures belongs behind a line; between two parts comes a picture: those
/// behind the lines `placed`, which are earlier ones in their order, then the candidates.
pub fn choosing_prompt(
    article: &Article,
    placed: &[usize],
    line: usize,
    candidates: usize,
) -> Vec<String> {
    // The demonstration marks the user by one more blank, and ends what he says twice.
    let mut parts = vec!["  <|User|>:根据给定上下文和候选图像，选择合适的配图：".to_owned()];
    for (i, text) in article.lines.iter().enumerate().take(line + 1) {
        if let Some(part) = parts.last_mut() {
            part.push_str(text);
            part.push('\n');
        }
        if placed.contains(&i) && i < line {
            parts.push(String::new());
        }
    }
    let last = parts.last_mut().into_iter();
    last.for_each(|part| part.push_str("\n\n候选图像包括: A."));
    parts.extend((1..candidates).map(|i| format!("\n{}.", letter(i))));
    let end = ENDS[0];
    parts.push(format!("\n\n{end} {end} <|Bot|>:最合适的图是"));
    parts
}

/// What stands for a candidate.
fn letter(candidate: usize) -> char {
    char::from(b'A' + candidate as u8)
}

/// Pictures that may be placed, by their numbers.
pub trait Album {
    /// What can go wrong with it.
    type Error: From<Error>;

    /// The `most` pictures that suit a caption best, the best first, without those of `but`.
    ///
    /// # Errors
    /// As the album has them; they end the composition.
    fn find(
        &mut self,
        caption: &str,
        most: usize,
        but: &[usize],
    ) -> std::result::Result<Vec<usize>, Self::Error>;

    /// A picture as the language model is shown it, `[image tokens, width]`.
    ///
    /// # Errors
    /// As the album has them; they end the composition.
    fn show(&mut self, picture: usize) -> std::result::Result<Tensor, Self::Error>;
}

/// Composes articles with a model that was tuned to.
pub struct Composer<'a> {
    talker: &'a dyn Talker,
    tokenizer: &'a Tokenizer,
    eos: Vec<u32>,
    letters: Vec<Vec<u32>>,
    interrupt: Option<Arc<AtomicBool>>,
}

impl<'a> Composer<'a> {
    /// With a model and its tokenizer; what is being written ends when `interrupt` is raised.
    ///
    /// # Errors
    /// If the vocabulary has no marks of turns, or no letters to choose by.
    pub fn new(
        talker: &'a dyn Talker,
        tokenizer: &'a Tokenizer,
        interrupt: Option<Arc<AtomicBool>>,
    ) -> Result<Self> {
        let unsuitable = |needs, missing: &str| Error::Unsuitable {
            what: "composing",
            needs,
            is: format!("one whose vocabulary has no `{missing}`"),
        };
        let mut eos = Vec::new();
        for end in ENDS {
            let needs = "a model with the marks of InternLM-XComposer";
            eos.push(tokenizer.id_of(end).ok_or_else(|| unsuitable(needs, end))?);
        }
        eos.extend(tokenizer.named().end);
        let mut letters = Vec::with_capacity(CANDIDATES);
        for letter in (0..CANDIDATES).map(letter) {
            let ids = letter_ids(tokenizer, letter);
            if ids.is_empty() {
                return Err(unsuitable("a model with letters to choose by", &letter.to_string()));
            }
            letters.push(ids);
        }
        Ok(Self { talker, tokenizer, eos, letters, interrupt })
    }

    /// An article for a title.
    ///
    /// # Errors
    /// If the title does not fit into the context.
    pub fn write(&self, title: &str) -> Result<Article> {
        let text = self.answer(&writing_prompt(title), ARTICLE_TOKENS, BEAMS, REPETITION)?;
        Ok(Article::new(&text))
    }

    /// The lines of an article that `images` pictures belong behind, in the order in which the model
    /// names them, and what it says.
    ///
    /// # Errors
    /// If the article does not fit into the context.
    pub fn spots(&self, article: &Article, images: Option<usize>) -> Result<(Vec<usize>, String)> {
        let asked = spotting_prompt(article, images);
        let reply = self.answer(&asked, PLACES_TOKENS, BEAMS, 1.0)?;
        Ok((spots(&reply, article.lines.len(), images), reply))
    }

    /// Captions of the pictures behind `lines`; fewer if it was interrupted.
    ///
    /// # Errors
    /// If the article and the captions do not fit into the context.
    pub fn captions(&self, article: &Article, lines: &[usize]) -> Result<Vec<Caption>> {
        let mut captions = Vec::with_capacity(lines.len());
        for &line in lines {
            if self.is_interrupted() {
                break;
            }
            let asked = captioning_prompt(article, &captions, line);
            let reply = self.answer(&asked, CAPTION_TOKENS, 1, REPETITION)?;
            let text = reply.split('"').next().unwrap_or_default().trim().to_owned();
            captions.push(Caption { line, text });
        }
        Ok(captions)
    }

    /// A picture of the album for each caption, in the order of the lines, added to `placed`, which begins
    /// empty. A picture is placed once; when there are no more, later lines get none.
    ///
    /// # Errors
    /// Those of the album, or if article and pictures do not fit into the context; `placed` has those that
    /// were placed before.
    pub fn place<A: Album>(
        &self,
        article: &Article,
        captions: &[Caption],
        album: &mut A,
        placed: &mut Vec<Placed>,
    ) -> std::result::Result<(), A::Error> {
        let mut captions = captions.to_vec();
        captions.sort_by_key(|caption| caption.line);
        let mut shown: Vec<Tensor> = Vec::new();
        for caption in captions {
            let used: Vec<usize> = placed.iter().map(|p| p.picture).collect();
            let candidates = album.find(&caption.text, CANDIDATES, &used)?;
            if candidates.is_empty() {
                break;
            }
            let mut seen = Vec::with_capacity(candidates.len());
            for picture in &candidates {
                seen.push(album.show(*picture)?);
            }
            let lines: Vec<usize> = placed.iter().map(|p| p.caption.line).collect();
            let best = self.choose(article, (&lines, &shown), caption.line, &seen)?;
            shown.push(seen.swap_remove(best));
            placed.push(Placed { caption, picture: candidates[best], candidates });
        }
        Ok(())
    }

    /// Which of the candidates belongs behind a line, with pictures behind earlier lines: the one whose
    /// letter is the likeliest next token among the letters.
    ///
    /// # Errors
    /// If article and pictures do not fit into the context.
    pub fn choose(
        &self,
        article: &Article,
        (lines, placed): (&[usize], &[Tensor]),
        line: usize,
        candidates: &[Tensor],
    ) -> Result<usize> {
        if candidates.len() <= 1 {
            return Ok(0);
        }
        if candidates.len() > self.letters.len() {
            return Err(Error::Unsuitable {
                what: "choosing among pictures",
                needs: "at most as many as there are letters for them, 4",
                is: format!("a choice of {}", candidates.len()),
            });
        }
        let letters = self.letters.iter().take(candidates.len());
        let parts = choosing_prompt(article, lines, line, candidates.len());
        let mut ids = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                ids.push(IMAGE);
            }
            ids.extend(self.tokenizer.encode(part, i == 0));
        }
        let language = self.talker.language();
        let pictures = [placed, candidates].concat();
        let logits = no_grad(|| -> Result<Tensor> {
            let prompt = prompt(language, &ids, &pictures)?;
            fits(language, &prompt)?;
            language.advance(&Rows::join(&[prompt.embeddings])?, &mut language.new_cache(1))
        })?;
        let logits = logits.values();
        let score = |ids: &Vec<u32>| {
            let of = |id: &u32| logits.get(*id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            ids.iter().map(of).fold(f32::NEG_INFINITY, f32::max)
        };
        let scores: Vec<f32> = letters.map(score).collect();
        // Of equals the first one.
        let best = (0..scores.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        Ok(best.unwrap_or(0))
    }

    fn is_interrupted(&self) -> bool {
        self.interrupt.as_ref().is_some_and(|flag| flag.load(Ordering::SeqCst))
    }

    /// What the model writes behind a text.
    fn answer(&self, asked: &str, most: usize, width: usize, repetition: f32) -> Result<String> {
        let language = self.talker.language();
        let ids = self.tokenizer.encode(asked, true);
        let strategy = match width {
            1 => Strategy::Greedy,
            _ => Strategy::Beam(Beams {
                width,
                length_penalty: 1.0,
                early_stopping: EarlyStopping::Heuristic,
            }),
        };
        let settings = Settings {
            strategy,
            repetition_penalty: repetition,
            interrupt: self.interrupt.clone(),
            ..Settings::greedy(most, &self.eos)
        };
        let answers = no_grad(|| {
            // The demonstration gives embeddings, so only what is written counts as said.
            let prompt = Prompt { ids: Vec::new(), ..Prompt::text(language, &ids)? };
            let on_token =
                &mut |_, _| if self.is_interrupted() { Flow::Stop } else { Flow::Continue };
            generate(language, &[prompt], &mut language.new_cache(1), &settings, on_token)
        })?;
        let ids = answers.first().map(|answer| answer.ids.as_slice()).unwrap_or_default();
        let text = self.tokenizer.decode(ids, true);
        let end = ENDS.iter().filter_map(|end| text.find(end)).min();
        Ok(text[..end.unwrap_or(text.len())].to_owned())
    }
}

/// The tokens that read as a letter, behind a blank or not.
fn letter_ids(tokenizer: &Tokenizer, letter: char) -> Vec<u32> {
    let text = letter.to_string();
    let mut ids = vec![tokenizer.encode(&text, false), tokenizer.encode_behind(&text)];
    ids.push(tokenizer.encode(&format!(" {text}"), false));
    let mut ids: Vec<u32> = ids.iter().filter_map(|ids| ids.last().copied()).collect();
    ids.retain(|id| tokenizer.decode(&[*id], false).trim() == text);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// That a prompt leaves room for a letter.
fn fits(decoder: &dyn Decoder, prompt: &Prompt) -> Result<()> {
    let (tokens, image_tokens) = (prompt.embeddings.shape().rows(), prompt.image_tokens);
    match decoder.context_length() {
        Some(limit) if tokens > limit => {
            Err(Error::ContextOverflow { limit, tokens, image_tokens })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn article() -> Article {
        Article::new("Tea\n\n  It is hot. \n \t\nIt is <Seg7>.\n")
    }

    #[test]
    fn prompts_are_those_of_the_demonstration() {
        assert_eq!(
            writing_prompt("Tea"),
            " <|User|>:根据给定标题写一个图文并茂，不重复的文章：Tea\n<TOKENS_UNUSED_0> <|Bot|>:"
        );
        let lines = "<Seg0> Tea\n<Seg1> It is hot.\n<Seg2> It is <Seg7>.\n";
        let spotting = |n: &str| {
            format!(
                " <|User|>:给定文章\"{lines}\" 根据上述文章，选择适合插入图像的{n}行 \n<TOKENS_UNUSED_0> \
                 <|Bot|>:适合插入图像的行是"
            )
        };
        assert_eq!(spotting_prompt(&article(), Some(2)), spotting("2"));
        assert_eq!(spotting_prompt(&article(), None), spotting(""));
        let caption = |line, text: &str| Caption { line, text: text.to_owned() };
        assert_eq!(
            captioning_prompt(&article(), &[], 0),
            " <|User|>: 给定文章\"<Seg0> Tea\n<Seg1> It is hot.\n\" 给出适合在<Seg0>后插入的图像对应的标题。 \
             \n<TOKENS_UNUSED_0> <|Bot|>: 标题是\""
        );
        let earlier = [caption(0, "a cup"), caption(2, "a pot")];
        assert_eq!(
            captioning_prompt(&article(), &earlier, 1),
            format!(
                " <|User|>: 给定文章\"{lines}\" 现在<Seg0>后插入图像对应的标题是\"a cup\"， \
                 <Seg2>后插入图像对应的标题是\"a pot\"。给出适合在<Seg1>后插入的图像对应的标题。 \
                 \n<TOKENS_UNUSED_0> <|Bot|>: 标题是\""
            )
        );
        assert_eq!(
            choosing_prompt(&article(), &[0], 1, 3).join("<image>"),
            "  <|User|>:根据给定上下文和候选图像，选择合适的配图：Tea\n<image>It is hot.\n\n\n候选图像包括: \
             A.<image>\nB.<image>\nC.<image>\n\n<TOKENS_UNUSED_0> <TOKENS_UNUSED_0> \
             <|Bot|>:最合适的图是"
        );
    }

    #[test]
    fn a_reply_is_read_for_lines_that_there_are() {
        let reply = "<Seg2>, <Seg0> <Seg2>, <Seg>, <Seg3>, <Segx>, <Seg-1> <Seg1";
        assert_eq!(spots(reply, 3, None), [2, 0]);
        assert_eq!(spots(reply, 4, None), [2, 0, 3]);
        assert_eq!(spots(reply, 4, Some(1)), [2]);
        assert_eq!(spots("<Seg99999999999999999999999>", 3, None), [0; 0]);
        assert_eq!(spots("nowhere", 3, None), [0; 0]);
    }
}
