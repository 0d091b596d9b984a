//! BLIP-2 composed of trained and frozen files, and what it writes.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_models::connector::qformer::QFormerConfig;
use ocelli_models::generate::{Answer, Flow, Settings, generate};
use ocelli_models::language::opt::{self, OptConfig};
use ocelli_models::language::t5::{self, T5Config};
use ocelli_models::systems::blip2::{Blip2, Blip2Config, TowerConfig, lavis_names};
use ocelli_models::systems::blip2_writing::{LanguageConfig, WritingConfig};
use ocelli_models::vision::eva_vit::{self, EvaVitConfig};
use ocelli_models::{Error, Files, HeadCounts, Model};
use ocelli_nn::checkpoint::{Dtype, TensorView, save_safetensors};
use ocelli_nn::{Builder, Names, Parameters};
use ocelli_tensor::{Activation, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

fn opt_config() -> OptConfig {
    OptConfig {
        vocab: 30,
        context_length: 24,
        word_width: 12,
        width: 12,
        depth: 2,
        heads: 3,
        mlp_dim: 20,
        ..OptConfig::variant("125m").unwrap()
    }
}

fn t5_config() -> T5Config {
    T5Config {
        vocab: 30,
        width: 12,
        encoder_depth: 2,
        decoder_depth: 2,
        heads: 3,
        head_dim: 5,
        mlp_dim: 16,
        buckets: 8,
        max_distance: 16,
        activation: Activation::Gelu,
        ..T5Config::variant("small").unwrap()
    }
}

fn config(language: LanguageConfig) -> Blip2Config {
    let vision = EvaVitConfig {
        image_size: (8, 8),
        patch_size: 4,
        width: 32,
        depth: 2,
        mlp_dim: 40,
        ..EvaVitConfig::variant("g/14").unwrap()
    };
    let qformer = QFormerConfig {
        queries: 3,
        width: 64,
        depth: 3,
        heads: 1,
        mlp_dim: 24,
        ..QFormerConfig::base(32)
    };
    let ends = if matches!(language, LanguageConfig::T5(_)) { [1, 1, 0] } else { [2, 2, 1] };
    let writing = WritingConfig {
        language,
        image_id: 30,
        bos_id: ends[0],
        eos_ids: vec![ends[1]],
        pad_id: ends[2],
    };
    let vision = TowerConfig::Eva(vision);
    Blip2Config { vision, norm_eps: 1e-5, qformer, matching: None, writing: Some(writing) }
}

fn random(config: &Blip2Config) -> (Blip2, Parameters) {
    let b = Builder::random(11);
    let model = Blip2::new(config, &b);
    let parameters = b.finish().unwrap();
    for p in parameters.iter().filter(|p| p.name().ends_with("weight")) {
        p.update(|values| values.iter_mut().for_each(|v| *v *= 3.0));
    }
    (model, parameters)
}

fn pixels(batch: usize) -> Tensor {
    let values: Vec<f32> = (0..batch * 192).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_slice(&values, &[batch, 3, 8, 8]).unwrap()
}

fn answers(model: &Blip2, pixels: &Tensor, texts: &[Vec<u32>]) -> Vec<Answer> {
    let memory = model.image_tokens(pixels).unwrap();
    let shown = model.shown(&model.qformer().forward(&memory).unwrap()).unwrap();
    let texts: Vec<Vec<u32>> = texts.iter().map(|t| model.with_picture(t).unwrap()).collect();
    let (prompts, mut cache) = model.prompts(&shown, &texts).unwrap();
    let settings = Settings::greedy(6, &[]);
    let go_on = &mut |_, _| Flow::Continue;
    generate(model.decoder().unwrap(), &prompts, &mut cache, &settings, go_on).unwrap()
}

/// Writes the parameters of these maps to a file.
fn save(path: &Path, parameters: &Parameters, names: &[Names]) {
    let rows: Vec<(String, Vec<usize>, Vec<u8>)> = parameters
        .export(names, |p| Some(p.tensor()))
        .into_iter()
        .map(|(name, shape, v)| (name, shape, v.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views: Vec<TensorView> = rows
        .iter()
        .map(|(name, shape, bytes)| TensorView { name, dtype: Dtype::F32, shape, bytes })
        .collect();
    save_safetensors(path, &views, &BTreeMap::new()).unwrap();
}

#[test]
fn an_answer_depends_on_its_picture_and_text_alone() {
    let texts = [vec![2, 5, 9, 4, 7], vec![2, 6]];
    for language in [LanguageConfig::Opt(opt_config()), LanguageConfig::T5(t5_config())] {
        let (model, _) = random(&config(language));
        let pixels = pixels(2);
        let both = answers(&model, &pixels, &texts);
        for (i, text) in texts.iter().enumerate() {
            let own = answers(&model, &pixels.narrow(0, i, 1).unwrap(), std::slice::from_ref(text));
            assert_eq!(own[0], both[i]);
        }
        let memory = model.image_tokens(&pixels).unwrap();
        let shown = model.shown(&model.qformer().forward(&memory).unwrap()).unwrap();
        let error = model.prompts(&shown, &[vec![2, 30, 5], vec![2, 30, 5]]).unwrap_err();
        assert!(matches!(error, Error::ImagePlaces { found: 1, expected: 3 }), "{error}");
    }
}

#[test]
fn trained_parts_join_frozen_ones() {
    let opt_json = r#"{"model_type": "opt", "vocab_size": 30, "max_position_embeddings": 24,
        "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 20}"#;
    let t5_json = r#"{"model_type": "t5", "vocab_size": 30, "d_model": 12, "num_layers": 2,
        "num_heads": 3, "d_kv": 5, "d_ff": 16, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": false}"#;
    for (language, json) in
        [(LanguageConfig::Opt(opt_config()), opt_json), (LanguageConfig::T5(t5_config()), t5_json)]
    {
        let config = config(language.clone());
        let (model, parameters) = random(&config);
        let dir = tempfile::tempdir().unwrap();
        let trained = dir.path().join("trained.pth");
        save(&trained, &parameters, &lavis_names(&config, false));
        let opened = || Files::find(&trained, None).unwrap().open(HeadCounts::default());

        // Each missing part is named.
        let error = opened().unwrap_err().to_string();
        assert!(error.contains("eva_vit_g.pth"), "{error}");
        // The tower's file has one block more than is run.
        let tower = dir.path().join("eva_vit_g.pth");
        let TowerConfig::Eva(mut deeper) = config.vision.clone() else { unreachable!() };
        deeper.depth += 1;
        let b = Builder::random(5);
        let whole = eva_vit::EvaVit::new(&deeper, &b.at("vision"));
        let whole_parameters = b.finish().unwrap();
        for p in whole_parameters.iter() {
            if let Some(ours) = parameters.get(p.name()) {
                p.replace(&ours.tensor());
            }
        }
        save(&tower, &whole_parameters, &[eva_vit::lavis_names("").under("vision.")]);
        drop(whole);
        let error = opened().unwrap_err().to_string();
        assert!(error.contains("language_model"), "{error}");
        let folder = dir.path().join("language_model");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), json).unwrap();
        let names = match &language {
            LanguageConfig::T5(c) => t5::names("", c),
            _ => opt::names("model."),
        };
        save(&folder.join("model.safetensors"), &parameters, &[names.under("language.")]);

        let composed = opened().unwrap();
        let Model::Blip2(again) = &composed.model else { panic!("{}", composed.model.kind()) };
        assert_eq!(composed.parameters.elements(), parameters.elements());
        let texts = [vec![2, 5, 9, 4, 7], vec![2, 6]];
        assert_eq!(answers(again, &pixels(2), &texts), answers(&model, &pixels(2), &texts));
        let sources: Vec<_> = composed.sources.iter().map(|s| (s.part, s.path.clone())).collect();
        assert_eq!(sources, [("qformer", trained), ("vision", tower), ("language", folder)]);
    }
}
