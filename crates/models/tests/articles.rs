//! Articles with pictures by the small InternLM-XComposer: what is asked is what is read, and what is chosen
//! is what passes without a cache choose.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_data::text::{IMAGE_MARK, Tokenizer};
use ocelli_models::connector::splice::Spliced;
use ocelli_models::language::causal::CausalModel;
use ocelli_models::systems::composition::{
    Album, Article, CANDIDATES, Caption, Composer, captioning_prompt, choosing_prompt,
    spotting_prompt, writing_prompt,
};
use ocelli_models::systems::talker::{Reading, Talker, ids};
use ocelli_models::{Error, Files, HeadCounts, Opened};
use ocelli_tensor::{Tensor, no_grad};
use std::path::{Path, PathBuf};

/// The ids of the letters in the small vocabulary, and of what ends an answer.
const LETTERS: [u32; 4] = [14, 18, 29, 32];
const ENDS: [u32; 3] = [2, 45, 46];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/xcomposer/tiny")
}

fn opened() -> (Opened, Tokenizer) {
    let opened = Files::find(&folder(), None).unwrap().open(HeadCounts::default()).unwrap();
    (opened, Tokenizer::from_dir(&folder()).unwrap())
}

fn article() -> Article {
    Article::new("the fox in the forest\n\na rocket flies\nthe tiger eats\n")
}

/// Pictures as unlike each other as waves of other lengths, as the language model is shown them.
fn pictures(talker: &dyn Talker, n: usize) -> Vec<Tensor> {
    let pixels: Vec<f32> = (0..n * 3 * 28 * 28)
        .map(|i| (i as f32 * (0.31 + (i / 2352) as f32 * 0.17)).sin() * (i / 2352 + 1) as f32)
        .collect();
    let pixels = Tensor::from_slice(&pixels, &[n, 3, 28, 28]).unwrap();
    no_grad(|| talker.pictures(&pixels)).unwrap()
}

/// The logits behind embeddings `[tokens, width]`, by a pass over all of them.
fn logits(language: &dyn CausalModel, embeddings: &Tensor) -> Vec<f32> {
    let &[tokens, width] = &embeddings.shape()[..] else { panic!("no row of embeddings") };
    no_grad(|| {
        let whole = embeddings.reshape(&[1, tokens, width]).unwrap();
        let features = language.features(&whole, None).unwrap();
        let last = features.select_tokens(&[tokens - 1]).unwrap();
        language.logits(&last).unwrap().values().to_vec()
    })
}

fn likeliest(scores: &[f32]) -> usize {
    (0..scores.len()).rev().max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
}

#[test]
fn prompts_become_the_ids_of_their_marks_and_words() {
    let (_, tokenizer) = opened();
    // The marks of turns, the end of the user's and the line's are 40, 41, 45 and 13, as in the stored
    // case; words that the vocabulary has not are 0, as a whole.
    assert_eq!(
        tokenizer.encode(&writing_prompt("D"), true),
        [1, 3, 40, 0, 12, 0, 32, 13, 45, 3, 41]
    );
    let article = Article::new("a fox\nthe moon");
    let lines = [4, 21, 22, 13, 15, 20, 44, 13];
    let asked = [&[1, 3, 40, 0, 10][..], &lines, &[10, 3, 0, 12, 0, 3, 13, 45, 3, 41, 0]].concat();
    assert_eq!(tokenizer.encode(&spotting_prompt(&article, Some(2)), true), asked);
    let asked =
        [&[1, 3, 40, 3, 0, 10][..], &lines, &[10, 3, 0, 4, 0, 11, 3, 13, 45, 3, 41, 3, 0, 10]];
    assert_eq!(tokenizer.encode(&captioning_prompt(&article, &[], 0), true), asked.concat());
}

#[test]
fn the_chosen_letter_is_the_likeliest_of_a_pass_without_a_cache() {
    let (opened, tokenizer) = opened();
    let talker = opened.model.talker().unwrap();
    let composer = Composer::new(talker, &tokenizer, None).unwrap();
    let all = pictures(talker, 7);
    let mut chosen = Vec::new();
    for (from, line) in (0..3).flat_map(|from| (0..3).map(move |line| (from, line))) {
        let (before, candidates) = (&all[from..=from], &all[from + 1..from + 5]);
        let before: (&[usize], &[Tensor]) = if line > 0 { (&[0], before) } else { (&[], &[]) };
        let got = composer.choose(&article(), before, line, candidates).unwrap();
        let text = choosing_prompt(&article(), before.0, line, 4).join(IMAGE_MARK);
        let ids = ids(&tokenizer, &text, Reading::default());
        let shown = [before.1, candidates].concat();
        let read = Spliced::new(talker.language(), &ids, None, &shown).unwrap();
        let scores = logits(talker.language(), &read.embeddings);
        let scores = LETTERS.map(|id| scores[id as usize]);
        assert_eq!(got, likeliest(&scores), "{scores:?}");
        chosen.push(got);
    }
    chosen.sort_unstable();
    chosen.dedup();
    assert!(chosen.len() > 1, "always the same letter");
    // One candidate is not asked about.
    assert_eq!(composer.choose(&article(), (&[], &[]), 1, &all[..1]).unwrap(), 0);
}

/// A caption is written greedily, where what it said before counts a fifth and its prompt does not count.
#[test]
fn captions_are_written_as_by_passes_without_a_cache() {
    let (opened, tokenizer) = opened();
    let talker = opened.model.talker().unwrap();
    let language = talker.language();
    let composer = Composer::new(talker, &tokenizer, None).unwrap();
    let captions = composer.captions(&article(), &[1, 0]).unwrap();
    let mut earlier: Vec<Caption> = Vec::new();
    for (caption, line) in captions.iter().zip([1, 0]) {
        let asked = captioning_prompt(&article(), &earlier, line);
        let asked = tokenizer.encode(&asked, true);
        let mut said: Vec<u32> = Vec::new();
        // The last token is never read, so it needs no room in the context of 128.
        while said.len() < 100 && asked.len() + said.len() <= 128 {
            let ids = [&asked[..], &said].concat();
            let embeddings = no_grad(|| language.embed(&ids)).unwrap();
            let mut scores = logits(language, &embeddings);
            for (id, score) in scores.iter_mut().enumerate() {
                if said.contains(&(id as u32)) {
                    *score *= if *score < 0.0 { 5.0 } else { 0.2 };
                }
            }
            said.push(likeliest(&scores) as u32);
            if ENDS.contains(&said[said.len() - 1]) {
                break;
            }
        }
        let text = tokenizer.decode(&said, true);
        let text = text.split('"').next().unwrap().trim().to_owned();
        assert_eq!((caption.line, &caption.text), (line, &text));
        earlier.push(caption.clone());
    }
    assert_eq!(captions.len(), 2);
}

/// Pictures in the order of their numbers, which remembers what it was asked for.
struct Row {
    pictures: Vec<Tensor>,
    gone: Option<usize>,
    asked: Vec<(String, Vec<usize>)>,
}

impl Album for Row {
    type Error = Error;

    fn find(&mut self, caption: &str, most: usize, but: &[usize]) -> Result<Vec<usize>, Error> {
        self.asked.push((caption.to_owned(), but.to_vec()));
        Ok((0..self.pictures.len()).filter(|i| !but.contains(i)).take(most).collect())
    }

    fn show(&mut self, picture: usize) -> Result<Tensor, Error> {
        match self.gone {
            Some(gone) if gone == picture => Err(Error::EmptyPrompt { index: picture }),
            _ => Ok(self.pictures[picture].clone()),
        }
    }
}

#[test]
fn every_picture_is_placed_once_and_those_before_are_seen() {
    let (opened, tokenizer) = opened();
    let talker = opened.model.talker().unwrap();
    let composer = Composer::new(talker, &tokenizer, None).unwrap();
    let captions: Vec<Caption> =
        [2, 0, 1].map(|line| Caption { line, text: format!("caption {line}") }).to_vec();
    let mut album = Row { pictures: pictures(talker, 6), gone: None, asked: Vec::new() };
    let mut placed = Vec::new();
    composer.place(&article(), &captions, &mut album, &mut placed).unwrap();
    let (mut lines, mut used, mut shown) = (Vec::new(), Vec::new(), Vec::new());
    for (line, placed) in placed.iter().enumerate() {
        assert_eq!(album.asked[line], (format!("caption {line}"), used.clone()));
        assert_eq!(placed.caption, Caption { line, text: format!("caption {line}") });
        assert_eq!(placed.candidates.len(), CANDIDATES);
        let candidates: Vec<Tensor> =
            placed.candidates.iter().map(|i| album.pictures[*i].clone()).collect();
        let best = composer.choose(&article(), (&lines, &shown), line, &candidates).unwrap();
        assert_eq!(placed.picture, placed.candidates[best]);
        assert!(!used.contains(&placed.picture));
        lines.push(line);
        used.push(placed.picture);
        shown.push(candidates[best].clone());
    }
    assert_eq!(placed.len(), 3);
    // What was placed before a picture is gone stays: the fifth is offered first for the second line.
    let (all, mut before) = (placed, Vec::new());
    album.gone = Some(4);
    let gone = composer.place(&article(), &captions, &mut album, &mut before);
    assert!(matches!(gone, Err(Error::EmptyPrompt { index: 4 })));
    assert_eq!(before, all[..1]);
    album.gone = None;
    // With fewer pictures than places the last lines get none.
    album.pictures.truncate(2);
    let mut placed = Vec::new();
    composer.place(&article(), &captions, &mut album, &mut placed).unwrap();
    let lines: Vec<usize> = placed.iter().map(|p| p.caption.line).collect();
    assert_eq!(lines, [0, 1]);
}

#[test]
fn a_vocabulary_without_the_marks_is_told() {
    let (opened, _) = opened();
    let talker = opened.model.talker().unwrap();
    let other = folder().join("../../../text/tokenizers/llama_tiny");
    let other = Tokenizer::from_dir(&other).unwrap();
    let error = Composer::new(talker, &other, None).err().unwrap().to_string();
    assert!(error.contains("no `<TOKENS_UNUSED_0>`"), "{error}");
}
