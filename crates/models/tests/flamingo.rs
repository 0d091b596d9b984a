//! A Flamingo writes the same whether its texts come together or alone, at once or token by token; and
//! what was trained of it is the whole model with the frozen parts beside it.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::connector::gated_xattn::GatedConfig;
use ocelli_models::connector::perceiver::PerceiverConfig;
use ocelli_models::connector::splice::IMAGE;
use ocelli_models::generate::{
    Answer, Beams, Cache, Decoder, EarlyStopping, Flow, Prompt, Rows, Settings, Strategy, generate,
};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::language::gpt_neox::GptNeoxConfig;
use ocelli_models::language::llama::LlamaConfig;
use ocelli_models::language::mpt::MptConfig;
use ocelli_models::language::opt::OptConfig;
use ocelli_models::systems::flamingo::{
    Documents, Flamingo, FlamingoConfig, LanguageConfig, Places, TowerConfig,
};
use ocelli_models::systems::talker::{Conversation, Talker, prompt};
use ocelli_models::vision::clip_vit::ClipVitConfig;
use ocelli_models::vision::position::PositionRule;
use ocelli_models::{Files, HeadCounts};
use ocelli_nn::checkpoint::{Checkpoint, Dtype, TensorView, save_safetensors};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::{Activation, Tensor, no_grad};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const VOCAB: usize = 40;
const PLACE: u32 = 39;
const WIDTH: usize = 24;

fn languages() -> [LanguageConfig; 5] {
    let (vocab, context_length, width, depth, mlp_dim) = (VOCAB, 60, WIDTH, 3, 32);
    let neox = GptNeoxConfig::variant("pythia-70m").unwrap();
    let llama = LlamaConfig::variant("7b").unwrap();
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    [
        LanguageConfig::Llama(LlamaConfig {
            vocab,
            context_length,
            width,
            depth,
            heads,
            kv_heads,
            head_dim,
            mlp_dim,
            ..llama
        }),
        LanguageConfig::Opt(OptConfig {
            vocab,
            context_length,
            word_width: width,
            width,
            depth,
            heads,
            mlp_dim,
            ..OptConfig::variant("125m").unwrap()
        }),
        // Of each head a third is turned.
        LanguageConfig::GptNeox(GptNeoxConfig {
            vocab,
            context_length,
            width,
            depth,
            heads,
            mlp_dim,
            rotary_dim: 2,
            ..neox
        }),
        LanguageConfig::Mpt(MptConfig {
            vocab,
            context_length,
            width,
            depth,
            heads: 3,
            mlp_dim,
            ..MptConfig::variant("7b").unwrap()
        }),
        LanguageConfig::MosaicGpt(MptConfig {
            vocab,
            context_length,
            width,
            depth,
            heads: 4,
            mlp_dim,
            ..MptConfig::variant("1b").unwrap()
        }),
    ]
}

/// A small Flamingo with weights so large that its texts differ, and gates that are open.
fn flamingo(text: LanguageConfig, looks_back: bool) -> Flamingo {
    let activation = Activation::SquaredRelu;
    let config = FlamingoConfig {
        vision: TowerConfig::Clip(
            ClipVitConfig {
                image_size: (16, 16),
                patch_size: 8,
                width: 16,
                depth: 1,
                heads: 2,
                mlp_dim: 24,
                quick_gelu: true,
                norm_eps: 1e-5,
                position_rule: PositionRule::Lavis,
            },
            true,
        ),
        resampler: PerceiverConfig {
            width: 16,
            depth: 2,
            heads: 3,
            head_dim: 4,
            latents: 5,
            mlp_dim: 32,
            activation,
            frames: 2,
            media: 12,
        },
        gated: GatedConfig {
            width: WIDTH,
            memory_width: 16,
            heads: 2,
            head_dim: 8,
            mlp_dim: 48,
            activation,
        },
        places: Places { every: 2, is_first: true },
        text,
        image_token: PLACE,
        looks_back,
    };
    let b = Builder::random(7);
    let model = Flamingo::new(&config, &b);
    let all: Parameters = b.finish().unwrap();
    for p in all.iter() {
        let is_gate = p.name().ends_with("gate");
        let is_small = p.name().starts_with("language.");
        p.update(|w| {
            for w in w {
                *w = if is_gate { 0.9 } else { *w * if is_small { 9.0 } else { 1.5 } };
            }
        });
    }
    model
}

fn pixels(pictures: usize, seed: usize) -> Tensor {
    let n = pictures * 3 * 16 * 16;
    let values: Vec<f32> = (0..n).map(|i| ((i * 31 + seed * 977) as f32 * 0.11).sin()).collect();
    Tensor::from_slice(&values, &[pictures, 3, 16, 16]).unwrap()
}

/// Texts with two pictures, with none, with one behind words, and with two in a row.
const TEXTS: [&[u32]; 4] =
    [&[1, IMAGE, 4, 5, IMAGE, 6], &[2, 9], &[3, 8, 7, IMAGE, 11, 12, 13], &[IMAGE, IMAGE, 20]];

fn prompts(model: &Flamingo) -> Vec<Prompt> {
    no_grad(|| {
        let pictures = model.pictures(&pixels(5, 1)).unwrap();
        let mut pictures = pictures.into_iter();
        let mut one = |ids: &&[u32]| {
            let count = ids.iter().filter(|id| **id == IMAGE).count();
            let shown: Vec<Tensor> = pictures.by_ref().take(count).collect();
            prompt(model, ids, &shown).unwrap()
        };
        TEXTS.iter().map(&mut one).collect()
    })
}

fn run(model: &Flamingo, prompts: &[Prompt], strategy: &Strategy) -> Vec<Answer> {
    let settings = Settings { strategy: strategy.clone(), ..Settings::greedy(8, &[]) };
    let mut cache = model.new_cache(prompts.len());
    generate(model, prompts, &mut cache, &settings, &mut |_, _| Flow::Continue).unwrap()
}

#[test]
fn a_batch_of_ragged_documents_equals_its_rows_alone() {
    let early_stopping = EarlyStopping::Heuristic;
    let beams = Strategy::Beam(Beams { width: 3, length_penalty: 1.0, early_stopping });
    for (text, looks_back) in languages().into_iter().zip([false, true, false, true, false]) {
        let model = flamingo(text, looks_back);
        let prompts = prompts(&model);
        for strategy in [Strategy::Greedy, beams.clone()] {
            let together = run(&model, &prompts, &strategy);
            for (prompt, answer) in prompts.iter().zip(&together) {
                let alone = run(&model, std::slice::from_ref(prompt), &strategy);
                assert_eq!(alone, std::slice::from_ref(answer));
            }
        }
    }
}

/// Logits of a batch whose rows have different numbers of pictures, bit for bit.
#[test]
fn the_logits_of_a_row_do_not_depend_on_the_others() {
    for text in languages() {
        let model = flamingo(text, false);
        let prompts = prompts(&model);
        let logits = |prompts: &[Prompt]| {
            no_grad(|| {
                let mut cache = model.new_cache(prompts.len());
                model.show(prompts, &mut cache).unwrap();
                let words: Vec<Tensor> = prompts.iter().map(|p| p.embeddings.clone()).collect();
                let rows = Rows::join(&words).unwrap();
                model.advance(&rows, &mut cache).unwrap()
            })
        };
        let together = logits(&prompts);
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = logits(std::slice::from_ref(prompt));
            assert_eq!(alone.values(), &together.values()[row * VOCAB..][..VOCAB], "row {row}");
        }
    }
}

#[test]
fn steps_equal_the_whole_pass_and_pictures_make_a_difference() {
    for (text, looks_back) in languages().into_iter().zip([false, true, true, false, true]) {
        let model = flamingo(text, looks_back);
        no_grad(|| {
            let pixels = pixels(2, 3);
            let ids = [4, PLACE, 5, 6, PLACE, 7, 8, 9];
            let media = model.media(&pixels.reshape(&[1, 2, 1, 3, 16, 16]).unwrap()).unwrap();
            let documents = |media| Documents { ids: ids.to_vec(), mask: [1; 8].into(), media };
            let whole = model.logits(&documents(media.clone())).unwrap();
            let other = model.logits(&documents(media.scale(0.5).unwrap())).unwrap();
            let shown = |ids: &[u32]| -> Vec<u32> {
                ids.iter().map(|id| if *id == PLACE { IMAGE } else { *id }).collect()
            };
            let pictures = model.pictures(&pixels).unwrap();
            let prompt = prompt(&model, &shown(&ids), &pictures).unwrap();
            let mut cache = model.new_cache(1);
            model.show(std::slice::from_ref(&prompt), &mut cache).unwrap();
            for (from, to) in [(0, 3), (3, 4), (4, 8)] {
                let words = prompt.embeddings.narrow(0, from, to - from).unwrap();
                let rows = Rows::join(&[words]).unwrap();
                let got = model.advance(&rows, &mut cache).unwrap();
                let at = (to - 1) * VOCAB..to * VOCAB;
                let (want, other) = (&whole.values()[at.clone()], &other.values()[at]);
                let largest = |a: &[f32], b: &[f32]| {
                    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
                };
                let size = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                assert!(largest(got.values(), want) <= 1e-5 * size, "{from}..{to}");
                assert!(largest(other, want) > 1e-3 * size, "pictures make no difference");
            }
        });
    }
}

/// A decoder that notes its logits, one `[batch, vocab]` after the other.
struct Noted<'a> {
    model: &'a Flamingo,
    logits: RefCell<Vec<Vec<f32>>>,
}

impl Decoder for Noted<'_> {
    fn context_length(&self) -> Option<usize> {
        self.model.context_length()
    }

    fn embed(&self, ids: &[u32]) -> ocelli_models::Result<Tensor> {
        Decoder::embed(self.model, ids)
    }

    fn show(&self, prompts: &[Prompt], cache: &mut Cache) -> ocelli_models::Result<()> {
        self.model.show(prompts, cache)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> ocelli_models::Result<Tensor> {
        let logits = self.model.advance(rows, cache)?;
        self.logits.borrow_mut().push(logits.values().to_vec());
        Ok(logits)
    }
}

/// Greedy answers of 6 tokens and the logits of each step.
fn noted(model: &Flamingo, prompts: &[Prompt]) -> (Vec<Answer>, Vec<Vec<f32>>) {
    let decoder = Noted { model, logits: RefCell::default() };
    let (mut cache, settings) = (model.new_cache(prompts.len()), Settings::greedy(6, &[]));
    let go_on = &mut |_, _| Flow::Continue;
    let answers = generate(&decoder, prompts, &mut cache, &settings, go_on).unwrap();
    (answers, decoder.logits.into_inner())
}

/// Prompts of four examples and a question about three pictures. Examples have one picture, two or
/// none, and texts of different lengths.
fn few_shot_texts() -> Vec<Vec<u32>> {
    const END: u32 = 38;
    let words = |n: usize, from: usize| (0..n).map(move |i| 2 + ((i * 5 + from * 7) % 33) as u32);
    let text = |row: usize| {
        let mut ids = vec![1];
        for shot in 0..4 {
            let pictures = if (row, shot) == (1, 2) { 0 } else { 1 + usize::from(shot == row) };
            ids.extend(vec![IMAGE; pictures]);
            ids.extend(words(1 + (3 * shot + 2 * row) % 5, 4 * row + shot));
            ids.push(END);
        }
        for picture in 0..3 {
            ids.push(IMAGE);
            ids.extend(words((row + picture) % 3, 20 + picture));
        }
        ids.extend(words(1 + row, 30 + row));
        ids
    };
    (0..4).map(text).collect()
}

/// Three pictures behind four examples: ids and logits of a batch are those of each prompt alone, bit
/// for bit, and with a cache they are those of a whole pass over all that is written so far.
#[test]
fn few_shot_prompts_of_three_pictures_are_the_same_together_and_alone() {
    let texts = few_shot_texts();
    let lengths: BTreeSet<usize> = texts.iter().map(Vec::len).collect();
    assert_eq!(lengths.len(), texts.len(), "all lengths differ");
    for (i, text) in languages().into_iter().enumerate() {
        let model = flamingo(text, i % 2 == 1);
        let (mut prompts, mut pixels_of) = (Vec::new(), Vec::new());
        for (row, ids) in texts.iter().enumerate() {
            let pixels = pixels(ids.iter().filter(|id| **id == IMAGE).count(), 11 + row);
            let shown = no_grad(|| model.pictures(&pixels)).unwrap();
            prompts.push(no_grad(|| prompt(&model, ids, &shown)).unwrap());
            pixels_of.push(pixels);
        }
        let (answers, logits) = noted(&model, &prompts);
        assert!(answers.iter().any(|answer| answer != &answers[0]), "all say the same");
        for (row, prompt) in prompts.iter().enumerate() {
            let (alone, steps) = noted(&model, std::slice::from_ref(prompt));
            assert_eq!(alone[0], answers[row], "row {row}");
            assert_eq!((steps.len(), logits.len()), (6, 6));
            for (step, (alone, together)) in steps.iter().zip(&logits).enumerate() {
                let together = &together[row * VOCAB..][..VOCAB];
                assert_eq!(alone, together, "row {row}, step {step}");
            }
            let pictures = prompt.shown.len();
            let pixels = pixels_of[row].reshape(&[1, pictures, 1, 3, 16, 16]).unwrap();
            let media = no_grad(|| model.media(&pixels)).unwrap();
            let mut ids = prompt.ids.clone();
            for (step, cached) in steps.iter().enumerate() {
                let mask = vec![1; ids.len()].into();
                let document = Documents { ids: ids.clone(), mask, media: media.clone() };
                let whole = no_grad(|| model.logits(&document)).unwrap();
                let whole = &whole.values()[(ids.len() - 1) * VOCAB..];
                let size = whole.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                let off = cached.iter().zip(whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off <= 1e-5 * size, "row {row}, step {step}: {off} of {size}");
                // A place in an answer is a word as others are, in a document it is a picture.
                assert_ne!(answers[row].ids[step], PLACE, "choose other pictures");
                ids.push(answers[row].ids[step]);
            }
        }
    }
}

/// A video that is shown with a text is what the resampler makes of all its frames, and a picture is a
/// video of one frame.
#[test]
fn videos_are_pictures_with_frames() {
    let model = flamingo(languages()[0].clone(), false);
    no_grad(|| {
        let frames = pixels(6, 9);
        let videos = frames.reshape(&[2, 3, 3, 16, 16]).unwrap();
        let media = model.media(&frames.reshape(&[1, 2, 3, 3, 16, 16]).unwrap()).unwrap();
        let shown = model.pictures(&videos).unwrap();
        let latents: Vec<Tensor> =
            (0..2).map(|i| model.resampler().medium(&shown[i], i).unwrap()).collect();
        let latents = Tensor::cat(&latents.iter().collect::<Vec<_>>(), 0).unwrap();
        assert_eq!(latents.values(), media.values());
        let alone = model.pictures(&frames.reshape(&[6, 1, 3, 16, 16]).unwrap()).unwrap();
        let pictures = model.pictures(&frames).unwrap();
        assert!(alone.iter().zip(&pictures).all(|(a, b)| a.values() == b.values()));
        let answer = |video: &Tensor| {
            let prompt = prompt(&model, &[1, IMAGE, 5], std::slice::from_ref(video)).unwrap();
            noted(&model, &[prompt]).1.remove(0)
        };
        let back: Vec<Tensor> =
            [2, 1, 0].map(|i| frames.narrow(0, i, 1).unwrap()).into_iter().collect();
        let back = Tensor::cat(&back.iter().collect::<Vec<_>>(), 0).unwrap();
        let back = model.pictures(&back.reshape(&[1, 3, 3, 16, 16]).unwrap()).unwrap();
        assert_ne!(answer(&shown[0]), answer(&back[0]), "the order makes no difference");
    });
}

/// A second turn over what is kept is the same as the whole conversation at once.
#[test]
fn a_conversation_goes_on_with_a_new_picture() {
    let model = flamingo(languages()[0].clone(), false);
    let pictures = no_grad(|| model.pictures(&pixels(2, 5))).unwrap();
    let settings = Settings::greedy(4, &[]);
    let ask = |conversation: &mut Conversation, ids: &[u32], pictures: &[Tensor]| {
        let go_on = &mut |_| Flow::Continue;
        conversation.answer(&model, ids, pictures, &settings, go_on).unwrap().ids
    };
    let mut conversation = Conversation::new(&model);
    let first = ask(&mut conversation, &[IMAGE, 5, 6], &pictures[..1]);
    let second = [&[IMAGE, 5, 6], &first[..], &[IMAGE, 8]].concat();
    let kept = ask(&mut conversation, &second, &pictures);
    assert_eq!(kept, ask(&mut Conversation::new(&model), &second, &pictures));
}

#[test]
fn places_and_pictures_must_be_as_many() {
    let model = flamingo(languages()[0].clone(), false);
    let error = prompt(&model, &[1, IMAGE, 2], &[]).unwrap_err().to_string();
    assert!(error.contains("places for pictures in the text: 1, pictures given: 0"), "{error}");
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn write(file: &Path, tensors: &Tensors) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|t| t.1.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views: Vec<TensorView> = (tensors.iter().zip(&bytes))
        .map(|((name, t), bytes)| TensorView { name, dtype: Dtype::F32, shape: &t.0, bytes })
        .collect();
    save_safetensors(file, &views, &BTreeMap::new()).unwrap();
}

/// As OpenFlamingo publishes it: what was trained, as several processes name it, and the frozen parts
/// in the layouts that they have alone.
#[test]
fn what_was_trained_beside_the_frozen_parts_is_the_whole() {
    for kind in ["mpt", "mosaic_gpt"] {
        parts_are_the_whole(kind);
    }
}

fn parts_are_the_whole(kind: &str) {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../testdata/golden/flamingo/openflamingo_{kind}"));
    let dir = tempfile::tempdir().unwrap();
    let whole = Checkpoint::open(&stored).unwrap();
    let (mut trained, mut tower, mut language) = (Tensors::new(), Tensors::new(), Tensors::new());
    for name in whole.names() {
        let shape = whole.info(name).unwrap().1.to_vec();
        let mut value = (shape, whole.read_f32(name).unwrap());
        if let Some(name) = name.strip_prefix("vision_encoder.") {
            tower.insert(format!("visual.{name}"), value);
            continue;
        }
        let is_words = name.ends_with("wte.weight");
        if name.contains("gated_cross_attn_layer") || name.starts_with("perceiver.") || is_words {
            trained.insert(format!("module.{name}"), value.clone());
        }
        if name.starts_with("lang_encoder.") && !name.contains("gated_cross_attn_layer") {
            if is_words {
                // Without the words that were added.
                value.0[0] -= 3;
                value.1.truncate(value.0.iter().product());
            }
            let name = name.replace("lang_encoder.", "").replace("decoder_layer.", "");
            language.insert(name, value);
        }
    }
    let copy = "module.lang_encoder.old_decoder_blocks.0.norm_1.weight".to_owned();
    trained.insert(copy, (vec![1], vec![0.0]));
    write(&dir.path().join("checkpoint.safetensors"), &trained);
    let config: Value =
        serde_json::from_slice(&std::fs::read(stored.join("config.json")).unwrap()).unwrap();
    let mut own = config.clone();
    own.as_object_mut().unwrap().remove("lm_config");
    std::fs::write(dir.path().join("config.json"), own.to_string()).unwrap();
    let open = || Files::find(dir.path(), None)?.open(HeadCounts::default());
    let error = open().unwrap_err().to_string();
    assert!(error.contains("vision_encoder") && error.contains("put it into"), "{error}");
    write(&dir.path().join("vision/tower.safetensors"), &tower);
    let error = open().unwrap_err().to_string();
    assert!(error.contains("frozen language model"), "{error}");
    write(&dir.path().join("language/model.safetensors"), &language);
    let mut text = config["lm_config"].clone();
    text["model_type"] = kind.into();
    text["vocab_size"] = 57.into();
    std::fs::write(dir.path().join("language/config.json"), text.to_string()).unwrap();
    let parts = open().unwrap();
    let whole = Files::find(&stored, None).unwrap().open(HeadCounts::default()).unwrap();
    assert_eq!(parts.parameters.elements(), whole.parameters.elements());
    for p in whole.parameters.iter() {
        let other = parts.parameters.get(p.name()).unwrap();
        assert_eq!(other.tensor().values(), p.tensor().values(), "{}", p.name());
    }
    let from: Vec<&str> = parts.sources.iter().map(|source| source.part).collect();
    assert_eq!(from, ["vision", "language", "resampler", "gated"]);
}

/// What no published `MosaicGPT` has changes its results, so it is not read over.
#[test]
fn a_mosaic_gpt_that_none_published_is_refused() {
    let stored = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/golden/flamingo/openflamingo_mosaic_gpt");
    let config: Value =
        serde_json::from_slice(&std::fs::read(stored.join("config.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let weights = "model.safetensors";
    std::fs::copy(stored.join(weights), dir.path().join(weights)).unwrap();
    for (field, value) in [
        ("no_bias", Value::Bool(false)),
        ("alibi", Value::Null),
        ("prefix_lm", Value::Bool(true)),
        ("attn_clip_qkv", 6.into()),
        ("logit_scale", "inv_sqrt_d_model".into()),
        ("alibi_bias_max", 0.into()),
    ] {
        let mut config = config.clone();
        config["lm_config"][field] = value;
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let opened = Files::find(dir.path(), None).unwrap().open(HeadCounts::default());
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(&format!("lm_config.{field}: expected")), "{error}");
    }
}
