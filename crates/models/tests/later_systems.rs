//! mPLUG-Owl, Qwen-VL, VisualGLM and InternLM-XComposer: cached equals uncached, a batch of n equals n of one,
//! and what a conversation may go on from. That they are what their references are is for `ocelli verify`.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::connector::splice::{IMAGE, Spliced};
use ocelli_models::generate::{Flow, Prompt, Rows, Settings, generate};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::systems::batch::Batch;
use ocelli_models::systems::talker::{Conversation, Talker};
use ocelli_models::{Files, HeadCounts, Opened};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_tensor::{Targets, Tensor, no_grad};
use std::path::{Path, PathBuf};

const CASES: [&str; 4] =
    ["mplug_owl/tiny", "qwen_vl/long_context", "visualglm/tiny", "xcomposer/tiny"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden").join(case)
}

fn opened(case: &str) -> Opened {
    Files::find(&folder(case), None).unwrap().open(HeadCounts::default()).unwrap()
}

/// The first picture of a case.
fn picture(case: &str, talker: &dyn Talker) -> Tensor {
    let golden = Checkpoint::open(&folder(case).join("golden.safetensors")).unwrap();
    let shape = golden.info("in/pixel_values").unwrap().1.to_vec();
    let pixels = golden.read_f32("in/pixel_values").unwrap();
    let pixels = Tensor::from_slice(&pixels, &shape).unwrap().narrow(0, 0, 1).unwrap();
    no_grad(|| talker.pictures(&pixels)).unwrap().remove(0)
}

fn prompts(case: &str, talker: &dyn Talker) -> Vec<Prompt> {
    let picture = picture(case, talker);
    let of = |ids: &[u32]| -> Prompt {
        let pictures = vec![picture.clone(); ids.iter().filter(|id| **id == IMAGE).count()];
        no_grad(|| Spliced::new(talker.language(), ids, None, &pictures)).unwrap().into()
    };
    vec![of(&[1, 5, IMAGE, 7, 8]), of(&[1, 9]), of(&[IMAGE, 4, 6, 8, 10, 12, 14, 16, 18])]
}

fn answers(language: &dyn CausalModel, prompts: &[Prompt]) -> Vec<Vec<u32>> {
    let mut cache = language.new_cache(prompts.len());
    let settings = Settings::greedy(7, &[]);
    let go_on = &mut |_, _| Flow::Continue;
    let answers = generate(language, prompts, &mut cache, &settings, go_on).unwrap();
    answers.into_iter().map(|answer| answer.ids).collect()
}

#[test]
fn a_batch_of_prompts_gives_what_each_gives_alone() {
    for case in CASES {
        let opened = opened(case);
        let talker = opened.model.talker().unwrap();
        let prompts = prompts(case, talker);
        let together = answers(talker.language(), &prompts);
        for (prompt, together) in prompts.into_iter().zip(together) {
            assert_eq!(answers(talker.language(), &[prompt])[0], together, "{case}");
        }
    }
}

/// A prompt read at once has the logits of one read token by token, or of the whole text read anew where
/// a model reads prompts otherwise than answers.
#[test]
fn cached_equals_uncached() {
    for case in CASES {
        let opened = opened(case);
        let talker = opened.model.talker().unwrap();
        let language = talker.language();
        for prompt in prompts(case, talker) {
            let tokens = prompt.embeddings.shape().rows();
            let width = prompt.embeddings.shape().last_axis();
            no_grad(|| {
                let mut cache = language.new_cache(1);
                let rows = Rows::join(std::slice::from_ref(&prompt.embeddings)).unwrap();
                let at_once = language.advance(&rows, &mut cache).unwrap();
                let whole = prompt.embeddings.reshape(&[1, tokens, width]).unwrap();
                let features = language.features(&whole, None).unwrap();
                let last = features.select_tokens(&[tokens - 1]).unwrap();
                assert_close(case, &language.logits(&last).unwrap(), &at_once);
            });
        }
    }
    // Where prompts are read as answers are, token by token is the same too.
    for case in ["mplug_owl/tiny", "xcomposer/tiny"] {
        let opened = opened(case);
        let talker = opened.model.talker().unwrap();
        let language = talker.language();
        let prompt = prompts(case, talker).remove(2);
        no_grad(|| {
            let mut cache = language.new_cache(1);
            let rows = Rows::join(std::slice::from_ref(&prompt.embeddings)).unwrap();
            let at_once = language.advance(&rows, &mut cache).unwrap();
            let mut cache = language.new_cache(1);
            let mut one_by_one = None;
            for token in 0..prompt.embeddings.shape().rows() {
                let token = prompt.embeddings.narrow(0, token, 1).unwrap();
                let rows = Rows::join(&[token]).unwrap();
                one_by_one = Some(language.advance(&rows, &mut cache).unwrap());
            }
            assert_close(case, &one_by_one.unwrap(), &at_once);
        });
    }
}

#[track_caller]
fn assert_close(case: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.elements(), want.elements(), "{case}");
    for (g, w) in got.values().iter().zip(want.values()) {
        assert!((g - w).abs() <= 1e-4 + 1e-4 * w.abs(), "{case}: {g} and {w}");
    }
}

/// A second turn says what it would say if all were read at once, also where the first one cannot be
/// gone on from.
#[test]
fn conversations_go_on_only_from_what_stays_true() {
    for case in CASES {
        let opened = opened(case);
        let talker = opened.model.talker().unwrap();
        let language = talker.language();
        let settings = Settings::greedy(5, &[]);
        let answer = |conversation: &mut Conversation, ids: &[u32]| -> Vec<u32> {
            let pictures = [picture(case, talker)];
            let mut go_on = |_| Flow::Continue;
            let settings = &settings;
            conversation.answer(language, ids, &pictures, settings, &mut go_on).unwrap().ids
        };
        let mut conversation = Conversation::new(language);
        let first = [1, 5, IMAGE, 7, 8];
        let said = answer(&mut conversation, &first);
        // Long enough for the second growth of Qwen's frequencies.
        let more: Vec<u32> = (3..30).collect();
        let second = [&first[..], &said, &more].concat();
        let anew = answer(&mut Conversation::new(language), &second);
        assert_eq!(answer(&mut conversation, &second), anew, "{case}");
    }
}

/// The parts of a whole file are those of the pickled one; what is wrong is named with its field.
#[test]
fn configurations_that_do_not_fit_are_told_with_their_field() {
    let dir = tempfile::tempdir().unwrap();
    for (case, from, to, says) in [
        (
            "mplug_owl/tiny",
            "\"num_query_tokens\": 5",
            "\"num_query_tokens\": 6",
            "num_query_tokens",
        ),
        ("qwen_vl/long_context", "\"n_queries\": 4", "\"n_queries\": 9", "visual.n_queries"),
        ("qwen_vl/long_context", "\"no_bias\": true", "\"no_bias\": false", "no_bias"),
        (
            "visualglm/tiny",
            "\"position_encoding_2d\": true",
            "\"position_encoding_2d\": false",
            "2d",
        ),
        ("xcomposer/tiny", "\"vocab_size\": 48", "\"vocab_size\": 49", "vocab_size"),
        ("xcomposer/tiny", "\"ffn\"", "\"all\"", "learn_param"),
    ] {
        let config = std::fs::read_to_string(folder(case).join("config.json")).unwrap();
        assert!(config.contains(from), "{case}: {from}");
        std::fs::write(dir.path().join("config.json"), config.replace(from, to)).unwrap();
        let weights = "model.safetensors";
        std::fs::copy(folder(case).join(weights), dir.path().join(weights)).unwrap();
        let files = Files::find(dir.path(), None).unwrap();
        let error = files.open(HeadCounts::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{case}: {error}");
    }
}

/// The mean cross-entropy of the first answer of the case, whose picture the gradient goes through.
fn xcomposer_loss(talker: &dyn Talker, pixels: &Tensor) -> Tensor {
    let ids = [1, 9, 8, 7, 40, IMAGE, 20, 21, 22, 13, 45, 41, 23, 24, 25, 46, 2];
    let mut labels = vec![Targets::IGNORED; ids.len()];
    labels[12..].copy_from_slice(&ids[12..]);
    let pictures = talker.pictures(pixels).unwrap();
    let text = Spliced::new(talker.language(), &ids, Some(&labels), &pictures).unwrap();
    Batch::new(talker.language(), &[text], 0, None).unwrap().loss(talker.language()).unwrap()
}

/// The reference's own backward pass of rotary positions is not at hand, so the gradients are held
/// against differences of the loss: along each of them it grows by its length.
#[test]
fn gradients_of_xcomposer_are_those_of_its_loss() {
    const STEP: f32 = 4e-3;
    let case = "xcomposer/tiny";
    let opened = opened(case);
    let talker = opened.model.talker().unwrap();
    let golden = Checkpoint::open(&folder(case).join("golden.safetensors")).unwrap();
    let shape = golden.info("in/pixel_values").unwrap().1.to_vec();
    let pixels = golden.read_f32("in/pixel_values").unwrap();
    let pixels = Tensor::from_slice(&pixels, &shape).unwrap().narrow(0, 0, 1).unwrap();
    let grads = xcomposer_loss(talker, &pixels).backward().unwrap();
    let names = [
        "language.word",
        "language.blocks.0.attn.k.weight",
        "language.blocks.0.attn.q.lora_a",
        "language.blocks.1.attn.v.lora_b",
        "language.blocks.0.mlp.up.lora_b",
        "language.blocks.1.mlp.down.lora_a",
        "ends.start",
        "ends.end",
        "projection.weight",
        "norm.weight",
        "qformer.queries",
        "qformer.blocks.0.cross.v.weight",
    ];
    for name in names {
        let parameter = opened.parameters.iter().find(|p| p.name() == name).unwrap();
        let grad = grads.get(&parameter.tensor()).unwrap().values().to_vec();
        let length = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
        let at = |step: f32| {
            let go = |step: f32| {
                parameter.update(|values| {
                    for (value, g) in values.iter_mut().zip(&grad) {
                        *value += step * g / length;
                    }
                });
            };
            go(step);
            let loss = no_grad(|| xcomposer_loss(talker, &pixels)).item().unwrap();
            go(-step);
            loss
        };
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!((slope / length - 1.0).abs() < 0.02, "{name}: {slope} and {length}");
    }
}
