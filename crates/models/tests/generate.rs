//! Writing text: a step equals the whole pass, and a row of a batch equals the row alone.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::Error;
use ocelli_models::generate::{
    Answer, Beams, EarlyStopping, Finish, Flow, Prompt, Rows, Sampling, Settings, Strategy,
    generate,
};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::language::gpt2::{Gpt2, Gpt2Config};
use ocelli_models::language::llama::{Llama, LlamaConfig};
use ocelli_models::language::opt::{Opt, OptConfig};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::{Tensor, no_grad};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const VOCAB: usize = 50;
const CONTEXT: usize = 40;

/// One of each kind, with weights so large that their texts differ.
fn models() -> Vec<Box<dyn CausalModel>> {
    let strong = |b: Builder| {
        let all: Parameters = b.finish().unwrap();
        all.iter().for_each(|p| p.update(|w| w.iter_mut().for_each(|w| *w *= 12.0)));
    };
    let (vocab, context_length, width, depth, mlp_dim) = (VOCAB, CONTEXT, 24, 2, 40);
    let b = Builder::random(1);
    let llama = LlamaConfig {
        vocab,
        context_length,
        width,
        depth,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        mlp_dim,
        ..LlamaConfig::variant("7b").unwrap()
    };
    let llama = Llama::new(&llama, &b);
    strong(b);
    let b = Builder::random(2);
    let small = Gpt2Config::variant("small").unwrap();
    let gpt2 = Gpt2::new(
        &Gpt2Config { vocab, context_length, width, depth, heads: 2, mlp_dim, ..small },
        &b,
    );
    strong(b);
    let b = Builder::random(3);
    let sizes = OptConfig::variant("350m").unwrap();
    let sizes = OptConfig { vocab, context_length, width, depth, heads: 3, mlp_dim, ..sizes };
    let opt = Opt::new(&OptConfig { word_width: 16, ..sizes }, &b);
    strong(b);
    vec![Box::new(llama), Box::new(gpt2), Box::new(opt)]
}

fn run(model: &dyn CausalModel, prompts: &[&[u32]], settings: &Settings) -> Vec<Answer> {
    let prompts: Vec<Prompt> = prompts.iter().map(|p| Prompt::text(model, p).unwrap()).collect();
    let mut cache = model.new_cache(prompts.len());
    generate(model, &prompts, &mut cache, settings, &mut |_, _| Flow::Continue).unwrap()
}

fn settings(strategy: Strategy) -> Settings {
    let eos = [7, 30];
    Settings { strategy, repetition_penalty: 1.2, min_new_tokens: 2, ..Settings::greedy(12, &eos) }
}

fn strategies() -> [Strategy; 3] {
    let sampling = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, min_p: 0.01, seed: 5 };
    let early_stopping = EarlyStopping::Heuristic;
    let beams = Beams { width: 3, length_penalty: 1.0, early_stopping };
    [Strategy::Greedy, Strategy::Sample(sampling), Strategy::Beam(beams)]
}

#[test]
fn steps_equal_the_whole_pass() {
    let ids = [3, 9, 1, 44, 20, 8, 8, 2];
    for model in models() {
        no_grad(|| {
            let whole = model.embed(&ids).unwrap();
            let width = whole.shape()[1];
            let whole = whole.reshape(&[1, ids.len(), width]).unwrap();
            let want = model.logits(&model.features(&whole, None).unwrap()).unwrap();
            let mut cache = model.new_cache(1);
            for (step, at) in [(0, 3), (3, 4), (4, 5), (5, 8)].into_iter().enumerate() {
                let rows = Rows::join(&[model.embed(&ids[at.0..at.1]).unwrap()]).unwrap();
                let got = model.advance(&rows, &mut cache).unwrap();
                let want = &want.values()[(at.1 - 1) * VOCAB..][..VOCAB];
                assert_eq!(got.values(), want, "step {step}");
            }
        });
    }
}

#[test]
fn a_batch_of_ragged_prompts_equals_its_rows_alone() {
    let prompts: [&[u32]; 4] = [&[5, 6, 7, 8, 9, 10, 11], &[1], &[2, 40], &[30, 30, 12]];
    for model in models() {
        for strategy in strategies() {
            let settings = settings(strategy);
            let together = run(&*model, &prompts, &settings);
            let mut texts = Vec::new();
            for (prompt, answer) in prompts.iter().zip(&together) {
                assert_eq!(run(&*model, &[prompt], &settings), std::slice::from_ref(answer));
                assert!((2..=12).contains(&answer.ids.len()), "{answer:?}");
                texts.push(answer.ids.clone());
            }
            texts.sort();
            texts.dedup();
            assert!(texts.len() > 1, "the prompts make no difference");
        }
    }
}

#[test]
fn one_beam_is_greedy_and_seeds_decide() {
    let early_stopping = EarlyStopping::Always;
    let beams = Beams { width: 1, length_penalty: 0.0, early_stopping };
    for model in models() {
        let prompt: &[u32] = &[4, 2, 33];
        let greedy = run(&*model, &[prompt], &settings(Strategy::Greedy));
        // A penalty on logarithms of probabilities differs from one on logits.
        let plain = |strategy| Settings { repetition_penalty: 1.0, ..settings(strategy) };
        assert_eq!(
            run(&*model, &[prompt], &plain(Strategy::Beam(beams.clone()))),
            run(&*model, &[prompt], &plain(Strategy::Greedy))
        );
        let cold = Sampling { temperature: 0.001, ..Sampling::default() };
        assert_eq!(run(&*model, &[prompt], &settings(Strategy::Sample(cold))), greedy);
        let warm = |seed| {
            let sampling = Sampling { temperature: 4.0, seed, ..Sampling::default() };
            run(&*model, &[prompt], &settings(Strategy::Sample(sampling)))
        };
        assert_eq!(warm(1), warm(1));
        assert_ne!(warm(1), warm(2));
    }
}

#[test]
fn a_chat_goes_on_where_it_was() {
    for model in models() {
        let settings = Settings::greedy(4, &[]);
        let say = |cache: &mut _, ids: &[u32]| {
            let prompt = Prompt::text(&*model, ids).unwrap();
            let go_on = &mut |_, _| Flow::Continue;
            generate(&*model, &[prompt], cache, &settings, go_on).unwrap().remove(0).ids
        };
        let mut cache = model.new_cache(1);
        let first = say(&mut cache, &[5, 6, 7]);
        assert_eq!(cache.lens(), [6]); // The last token was never read.
        let second = say(&mut cache, &[first[3], 9]);
        let mut whole = vec![5, 6, 7];
        whole.extend(&first);
        whole.push(9);
        assert_eq!(second, say(&mut model.new_cache(1), &whole));
        cache.truncate(0, 6);
        assert_eq!(second, say(&mut cache, &[first[3], 9]));
    }
}

#[test]
fn a_row_ends_when_the_caller_says_so_and_at_the_end_of_the_context() {
    let model = &models()[0];
    let prompts = [[1, 2].as_slice(), &[3; CONTEXT - 2], &[4; CONTEXT]];
    let prompts = prompts.map(|p| Prompt::text(&**model, p).unwrap());
    let settings = Settings::greedy(100, &[]);
    let mut said = Vec::new();
    let mut stop = |row, id| {
        said.push((row, id));
        if row == 0 && said.iter().filter(|(r, _)| *r == 0).count() == 3 {
            Flow::Stop
        } else {
            Flow::Continue
        }
    };
    let mut cache = model.new_cache(3);
    let answers = generate(&**model, &prompts, &mut cache, &settings, &mut stop).unwrap();
    let found: Vec<_> = answers.iter().map(|a| (a.ids.len(), a.finish)).collect();
    assert_eq!(found, [(3, Finish::Stopped), (3, Finish::Length), (1, Finish::Length)]);
    assert_eq!(cache.lens(), [4, CONTEXT, CONTEXT]);
    let told = said.iter().filter(|(row, _)| *row == 1).map(|(_, id)| *id);
    assert_eq!(told.collect::<Vec<_>>(), answers[1].ids);

    let width = prompts[0].embeddings.shape()[1];
    let embeddings = Tensor::zeros(&[CONTEXT + 1, width]);
    let long =
        Prompt { embeddings, ids: vec![1; 11], image_tokens: CONTEXT - 10, shown: Vec::new() };
    let go_on = &mut |_, _| Flow::Continue;
    let error = generate(&**model, &[long], &mut model.new_cache(1), &settings, go_on);
    match error.unwrap_err() {
        Error::ContextOverflow { limit: 40, tokens: 41, image_tokens: 30 } => {}
        other => panic!("{other}"),
    }
}

#[test]
fn a_beam_search_ends_when_asked() {
    let [_, _, beams] = strategies();
    for model in models() {
        let whole = run(&*model, &[&[4, 2, 33]], &settings(beams.clone()));
        let flag = Arc::new(AtomicBool::new(true));
        let interrupted = Settings { interrupt: Some(flag), ..settings(beams.clone()) };
        let cut = run(&*model, &[&[4, 2, 33]], &interrupted);
        assert!(cut[0].ids.len() == 1 && whole[0].ids.len() > 1, "{cut:?} {whole:?}");
        // A caller that has read enough gets what it has read.
        let prompt = Prompt::text(&*model, &[4, 2, 33]).unwrap();
        let mut told = 0;
        let stopped = generate(
            &*model,
            &[prompt],
            &mut model.new_cache(1),
            &settings(beams.clone()),
            &mut |_, _| {
                told += 1;
                if told < 2 { Flow::Continue } else { Flow::Stop }
            },
        );
        let stopped = &stopped.unwrap()[0];
        assert_eq!(stopped.ids, whole[0].ids[..2]);
        assert!(stopped.finish == Finish::Stopped || whole[0].ids.len() == 2);
    }
}
