//! Who sees whom: in a model of one block an output changes with an input if, and only if, the mask that
//! `ocelli viz mask` draws says that it sees it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::connector::gated_xattn::{self, GatedConfig, GatedCrossAttention, times};
use ocelli_models::connector::qformer::{
    Memory, Objective, QFormer, QFormerConfig, QFormerTextConfig,
};
use ocelli_models::language::bert::Texts;
use ocelli_models::language::chatglm::{Asked, ChatGlm, ChatGlmConfig};
use ocelli_nn::Builder;
use ocelli_tensor::{Activation, Tensor};

/// Parameters so large that no influence is lost to rounding, and so small that every key keeps a share.
fn strong(b: Builder) {
    b.finish()
        .unwrap()
        .iter()
        .for_each(|p| p.update(|w| w.iter_mut().for_each(|w| *w = 3.0 * *w + 0.01)));
}

/// Which rows of `[1, rows, width]` differ.
fn changed(a: &Tensor, b: &Tensor) -> Vec<bool> {
    let width = a.shape().last_axis();
    let (a, b) = (a.values(), b.values());
    a.chunks(width).zip(b.chunks(width)).map(|(a, b)| a != b).collect()
}

fn texts(ids: &[u32]) -> Texts {
    Texts {
        ids: ids.into(),
        token_types: vec![0; ids.len()].into(),
        mask: vec![1; ids.len()].into(),
        batch: 1,
    }
}

#[test]
fn a_q_former_sees_what_its_objectives_say() {
    let (queries, words) = (3, [5, 7, 9, 11]);
    let b = Builder::random(1);
    let text = QFormerTextConfig { vocab: 20, context_length: 8, has_language_head: true };
    let sizes = QFormerConfig {
        queries,
        width: 16,
        depth: 1,
        heads: 2,
        mlp_dim: 32,
        ..QFormerConfig::base(8)
    };
    let model = QFormer::new(&QFormerConfig { text: Some(text), ..sizes }, &b);
    strong(b);
    let memory: Memory = Tensor::from_slice(&[0.3; 16], &[1, 2, 8]).unwrap().into();
    for at in 0..words.len() {
        let mut other = words;
        other[at] += 1;
        let [before, after] = [words, other].map(|ids| texts(&ids));
        let sees = |objective: Objective, place: usize| {
            objective.seen(place, queries, words.len()).contains(&(queries + at))
        };
        let of_text = |objective| {
            (queries..queries + words.len()).map(|place| sees(objective, place)).collect::<Vec<_>>()
        };

        let read = |t| model.read(t).unwrap();
        assert_eq!(
            changed(&read(&before), &read(&after)),
            of_text(Objective::Contrastive),
            "contrast, word {at}"
        );
        let join = |t| model.join(&memory, t).unwrap();
        let all: Vec<bool> =
            (0..queries + words.len()).map(|place| sees(Objective::Matching, place)).collect();
        assert_eq!(changed(&join(&before), &join(&after)), all, "matching, word {at}");
        let write = |t| model.write(&memory, t).unwrap();
        assert_eq!(
            changed(&write(&before), &write(&after)),
            of_text(Objective::Generation),
            "writing, word {at}"
        );
    }
}

#[test]
fn a_chatglm_reads_its_prompt_in_both_directions() {
    let (tokens, width) = (7, 16);
    let b = Builder::random(2);
    let sizes = ChatGlmConfig::variant("6b").unwrap();
    let sizes = ChatGlmConfig { vocab: 20, width, depth: 1, heads: 2, mlp_dim: 32, ..sizes };
    let model = ChatGlm::new(&sizes, &b);
    strong(b);
    let asked = Asked::prompt(4);
    let features = |words: &[f32]| {
        let words = Tensor::from_slice(words, &[1, tokens, width]).unwrap();
        model.features_of(&words, None, &[asked]).unwrap()
    };
    let words: Vec<f32> =
        (0..tokens * width).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
    for at in 0..tokens {
        let mut other = words.clone();
        other[at * width] += 0.5;
        let sees: Vec<bool> = (0..tokens).map(|place| at < asked.seen(place)).collect();
        assert_eq!(changed(&features(&words), &features(&other)), sees, "token {at}");
    }
}

#[test]
fn a_word_looks_at_the_pictures_that_are_drawn() {
    let (width, latents) = (16, 2);
    let b = Builder::random(3);
    let activation = Activation::Gelu;
    let sizes =
        GatedConfig { width, memory_width: 8, heads: 2, head_dim: 8, mlp_dim: 32, activation };
    let layer = GatedCrossAttention::new(sizes, &b);
    strong(b); // The gates too, which begin at 0.
    let times = times([false, true, false, true, true, false]);
    let (tokens, media) = (times.len(), 3);
    let words: Vec<f32> = (0..tokens * width).map(|i| ((i * 31) % 17) as f32 / 8.0 - 1.0).collect();
    let words = Tensor::from_slice(&words, &[1, tokens, width]).unwrap();
    for looks_back in [false, true] {
        let sight = gated_xattn::Sight::new(&times, 1, media, latents, looks_back).unwrap();
        let look = |pictures: &[f32]| {
            let pictures = Tensor::from_slice(pictures, &[1, media * latents, 8]).unwrap();
            layer.forward(&words, &pictures, &sight).unwrap()
        };
        let pictures: Vec<f32> =
            (0..media * latents * 8).map(|i| (i % 13) as f32 / 6.0 - 1.0).collect();
        for medium in 1..=media {
            let mut other = pictures.clone();
            other[(medium - 1) * latents * 8] += 0.5;
            let sees = |time: &u32| gated_xattn::sees(*time, medium as u32, looks_back);
            let sees: Vec<bool> = times.iter().map(sees).collect();
            assert_eq!(
                changed(&look(&pictures), &look(&other)),
                sees,
                "picture {medium}, {looks_back}"
            );
        }
    }
}
