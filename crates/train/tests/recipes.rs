//! Every recipe reads, says what it is, and describes a model that exists.
#![allow(clippy::unwrap_used)] // A failed test is to panic.

use ocelli_models::systems::clip::ClipConfig;
use ocelli_models::vision::vit::VitConfig;
use ocelli_train::TrainConfig;
use ocelli_train::config::Family;
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
            Family::Clip => {
                assert!(ClipConfig::variant(&variant).is_some(), "{}", path.display());
                clip.insert(variant);
            }
        }
    }
    let sizes = ["B/16", "B/32", "H/14", "L/16", "L/32", "S/16", "Ti/16"];
    assert_eq!(vit.into_iter().collect::<Vec<_>>(), sizes);
    // The ninth, ViT-L/14@336, starts from the eighth.
    assert_eq!(clip.len(), 8);
}
