//! Batches of changed drawings at 64 pixels from pictures in memory, one thread: samples a second.
#![allow(missing_docs, reason = "divan makes public items")]

use std::{fs, sync::Arc};

use divan::{Bencher, counter::ItemsCount};
use ocelli_data::dataset::{
    AugmentConfig, CacheConfig, Dataset, Loader, LoaderConfig, OnBroken, SourceConfig, Targets,
    View,
};

const SAMPLES: usize = 1024;

fn main() {
    divan::main();
}

fn loader(augment: AugmentConfig) -> Loader {
    let root = std::env::temp_dir().join(format!("ocelli-loader-bench-{}", std::process::id()));
    fs::create_dir_all(root.join("disc")).expect("the temporary folder is writable");
    for n in 0..SAMPLES {
        let color = n * 16_001 % 0x00FF_FFFF;
        let svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='24' height='24'>\
             <circle cx='12' cy='12' r='9' fill='#{color:06x}'/></svg>"
        );
        fs::write(root.join(format!("disc/{n}.svg")), svg).expect("the folder is writable");
    }
    let source = SourceConfig::new(root.to_string_lossy());
    let dataset = Dataset::open(&[source]).expect("just written");
    let config = LoaderConfig {
        batch_size: 256,
        threads: 1,
        seed: 0,
        shuffle: true,
        drop_last: true,
        epochs: None,
        on_broken: OnBroken::Error,
        targets: Targets { captions: true, labels: true },
        view: View::Train { size: 64, augment, mean: [0.5; 3], std: [0.25; 3] },
        cache: Some(CacheConfig::default()),
    };
    let loader = Loader::new(Arc::new(dataset), config).expect("sound settings");
    let batches = loader.batches(&loader.start()).expect("threads are to be had");
    assert_eq!(batches.take(SAMPLES / 256).flatten().count(), SAMPLES / 256);
    fs::remove_dir_all(root).expect("just written");
    loader
}

fn measure(bencher: Bencher<'_, '_>, augment: AugmentConfig) {
    let loader = loader(augment);
    let mut batches = loader.batches(&loader.start()).expect("threads are to be had");
    bencher.counter(ItemsCount::new(256_usize)).bench_local(|| batches.next());
}

fn jittered() -> AugmentConfig {
    AugmentConfig {
        scale: [0.4, 1.0],
        padding: [0.0, 0.3],
        random_background: 0.5,
        flip: 0.5,
        brightness: 0.4,
        contrast: 0.4,
        saturation: 0.4,
        grayscale: 0.1,
        ..AugmentConfig::default()
    }
}

#[divan::bench]
fn crop(bencher: Bencher<'_, '_>) {
    measure(bencher, AugmentConfig::default());
}

#[divan::bench]
fn crop_and_jitter(bencher: Bencher<'_, '_>) {
    measure(bencher, jittered());
}

#[divan::bench]
fn crop_jitter_and_turn(bencher: Bencher<'_, '_>) {
    measure(bencher, AugmentConfig { rotate: 15.0, ..jittered() });
}
