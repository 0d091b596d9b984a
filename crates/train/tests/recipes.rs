//! Every recipe reads, says what it is, and describes a model that exists.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_models::systems::clip::ClipConfig;
use ocelli_models::vision::resnet_v2::HybridVitConfig;
use ocelli_models::vision::vit::VitConfig;
use ocelli_train::config::Family;
use ocelli_train::{TrainConfig, plan};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn recipes() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut found = Vec::new();
    for folder in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            found.push(file.unwrap().path());
        }
    }
    found.sort();
    found
}

#[test]
fn every_recipe_reads() {
    let (mut vit, mut clip) = (BTreeSet::new(), BTreeSet::new());
    for path in recipes() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# ") && text.contains("# Run"), "{}", path.display());
        let config = TrainConfig::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let Some(variant) = config.model.variant else { continue };
        match config.model.family {
            Family::Vit => {
                assert!(VitConfig::variant(&variant).is_some(), "{}", path.display());
                vit.insert(variant);
            }
            Family::Hybrid => {
                assert!(HybridVitConfig::variant(&variant).is_some(), "{}", path.display());
            }
            Family::Clip => {
                assert!(ClipConfig::variant(&variant).is_some(), "{}", path.display());
                clip.insert(variant);
            }
            other => panic!("{}: {other:?} has no published sizes", path.display()),
        }
    }
    let sizes = ["B/16", "B/32", "H/14", "L/16", "L/32", "S/16", "Ti/16"];
    assert_eq!(vit.into_iter().collect::<Vec<_>>(), sizes);
    // The ninth, ViT-L/14@336, starts from the eighth and says so.
    assert_eq!(clip.len(), 8);
}

/// Without a single file of data, and without the checkpoints that some start from.
#[test]
fn every_recipe_has_a_plan() {
    for path in recipes() {
        let config = TrainConfig::load(&path, &[]).unwrap();
        let plan = plan(&config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let name = path.file_stem().unwrap().to_str().unwrap();
        let table = plan.to_string();
        for source in &config.data.sources {
            if source.missing_path().unwrap().is_some() {
                assert!(plan.data.is_none(), "{name}");
                assert!(table.contains("data not found: data/"), "{name}: {table}");
            }
        }
        for tower in config.model.towers.iter().flat_map(|t| [&t.vision, &t.text]) {
            let line = format!("tower not found: {}", tower.display());
            assert_eq!(table.contains(&line), !tower.exists(), "{name}: {table}");
        }
        let is_start_missing = config.model.from.as_ref().is_some_and(|from| !from.exists());
        assert_eq!(table.contains("model not found: runs/"), is_start_missing, "{name}: {table}");
        assert!(table.contains("trainable") && table.contains("memory about"), "{name}: {table}");
        assert!(plan.operations > 0.0 && plan.activations > 0, "{name}: {table}");
        assert!(table.contains("time about"), "{name}: {table}");
        assert_eq!(
            plan.total_steps.is_none(),
            config.train.epochs.is_some() && plan.data.is_none()
        );
    }
}

#[test]
fn plans_count_the_published_parameters() {
    for (recipe, parameters) in [
        ("vit/b16_in1k", 86_567_656),
        ("vit/h14_384_in1k", 632_721_640),
        ("clip/vit_b32", 151_277_313),
        ("clip/vit_l14_336", 427_944_193),
        ("clip/rn50", 102_007_137),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(recipe);
        let config = TrainConfig::load(&path.with_extension("toml"), &[]).unwrap();
        assert_eq!(plan(&config).unwrap().weights, 4 * parameters, "{recipe}");
    }
}
