//! Batches: the same whatever the threads and interruptions, and every sample where it belongs.
#![allow(clippy::unwrap_used, reason = "a failing line names itself in a test")]

use std::{fmt::Write, fs, path::Path, sync::Arc};

use ocelli_data::{
    dataset::{
        AugmentConfig, Batch, CacheConfig, DataState, Dataset, DatasetError, Loader, LoaderConfig,
        OnBroken, Sampler, SourceConfig, Targets, View,
    },
    image::{Limits, Processor, decode},
};

const SIDE: usize = 16;

/// JSON lines of `count` drawings with captions and labels; the picture of each number in `broken` is
/// cut.
fn drawings(name: &str, count: usize, broken: &[usize]) -> SourceConfig {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("loader").join(name);
    fs::create_dir_all(&root).unwrap();
    let mut lines = String::new();
    for n in 0..count {
        let svg = format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='20' height='{}'>\
             <circle cx='10' cy='9' r='{}' fill='#{:06x}'/></svg>",
            16 + n % 9,
            2 + n % 7,
            n * 77_777 % 0x00FF_FFFF
        );
        let end = if broken.contains(&n) { 30 } else { svg.len() };
        fs::write(root.join(format!("{n}.svg")), &svg[..end]).unwrap();
        let label = n % 3;
        writeln!(
            lines,
            r#"{{"image": "{n}.svg", "caption": ["c{n}", "d{n}", "e{n}"], "text": "t{n}", "label": {label}}}"#
        )
        .unwrap();
    }
    let path = root.join("drawings.jsonl");
    fs::write(&path, lines).unwrap();
    SourceConfig::new(path.to_str().unwrap())
}

fn training() -> View {
    let augment = AugmentConfig {
        scale: [0.3, 1.0],
        padding: [0.0, 0.4],
        random_background: 0.5,
        flip: 0.5,
        rotate: 20.0,
        brightness: 0.4,
        contrast: 0.4,
        saturation: 0.4,
        jitter_probability: 0.8,
        grayscale: 0.2,
        ..AugmentConfig::default()
    };
    View::Train { size: SIDE, augment, mean: [0.5; 3], std: [0.25; 3] }
}

fn config() -> LoaderConfig {
    LoaderConfig {
        batch_size: 8,
        threads: 1,
        seed: 5,
        shuffle: true,
        drop_last: false,
        epochs: Some(3),
        on_broken: OnBroken::Error,
        targets: Targets { captions: true, labels: true },
        view: training(),
        cache: Some(CacheConfig { side: 24, bytes: 1 << 20 }),
    }
}

fn run(dataset: &Arc<Dataset>, config: LoaderConfig, from: Option<&DataState>) -> Vec<Batch> {
    let loader = Loader::new(Arc::clone(dataset), config).unwrap();
    let start = loader.start();
    loader.batches(from.unwrap_or(&start)).unwrap().map(Result::unwrap).collect()
}

fn assert_same(a: &[Batch], b: &[Batch]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        let bits = |batch: &Batch| batch.pixels.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(a), bits(b));
        assert_eq!((&a.captions, &a.labels, &a.keys), (&b.captions, &b.labels, &b.keys));
        assert_eq!((&a.state_after, a.epoch), (&b.state_after, b.epoch));
    }
}

#[test]
fn resuming_anywhere_gives_the_same_rest_bit_for_bit() {
    let data = Arc::new(Dataset::open(&[drawings("resume", 43, &[11, 30])]).unwrap());
    let config = LoaderConfig { on_broken: OnBroken::Skip { limit: 6 }, ..config() };
    let whole = run(&data, config.clone(), None);
    assert_eq!(whole.last().unwrap().state_after.skipped, 6);
    for threads in [1, 3] {
        let config = LoaderConfig { threads, ..config.clone() };
        assert_same(&run(&data, config.clone(), None), &whole);
        for (n, batch) in whole.iter().enumerate() {
            let saved = serde_json::to_string(&batch.state_after).unwrap();
            let state: DataState = serde_json::from_str(&saved).unwrap();
            assert_same(&run(&data, config.clone(), Some(&state)), &whole[n + 1..]);
        }
    }
}

#[test]
fn pictures_do_not_depend_on_what_is_kept() {
    let data = Arc::new(Dataset::open(&[drawings("kept", 20, &[])]).unwrap());
    let kept = run(&data, config(), None);
    for bytes in [0, 6_000] {
        let cache = Some(CacheConfig { side: 24, bytes });
        let loader = Loader::new(Arc::clone(&data), LoaderConfig { cache, ..config() }).unwrap();
        let batches: Vec<_> =
            loader.batches(&loader.start()).unwrap().map(Result::unwrap).collect();
        assert_same(&batches, &kept);
        assert!(loader.cached_bytes() <= bytes);
    }
}

#[test]
fn epochs_are_permutations_with_new_pictures_and_captions() {
    let data = Arc::new(Dataset::open(&[drawings("epochs", 43, &[])]).unwrap());
    let batches = run(&data, config(), None);
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let of: Vec<&Batch> = batches.iter().filter(|batch| batch.epoch == epoch).collect();
        assert_eq!(of.iter().map(|batch| batch.keys.len()).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 3]);
        let order: Vec<usize> = of.iter().flat_map(|batch| batch.indices.clone()).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..43).collect::<Vec<_>>());
        orders.push(order);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
    for batch in &batches {
        assert_eq!(batch.pixels.len(), batch.keys.len() * 3 * SIDE * SIDE);
        assert!(batch.pixels.iter().all(|v| (-2.01..=2.01).contains(v)));
        for (n, &index) in batch.indices.iter().enumerate() {
            assert_eq!(batch.keys[n], format!("{index}.svg"));
            assert_eq!(batch.captions[n][1..], index.to_string());
            assert_eq!(batch.labels[n] as usize, index % 3);
        }
    }
    // Half of the captions come from "text", which has one, half from the three of "caption".
    let of =
        |letter| batches.iter().flat_map(|b| &b.captions).filter(|c| c.starts_with(letter)).count();
    let counts = ['t', 'c', 'd', 'e'].map(of);
    assert!((45..85).contains(&counts[0]), "{counts:?}");
    assert!(counts[1..].iter().all(|count| (8..36).contains(count)), "{counts:?}");
}

#[test]
fn weights_repeat_and_thin_sources() {
    let mut sources = [drawings("heavy", 10, &[]), drawings("light", 40, &[])];
    (sources[0].weight, sources[1].weight) = (2.5, 0.25);
    let data = Dataset::open(&sources).unwrap();
    for shuffle in [true, false] {
        let sampler = Sampler::new(&data, 9, shuffle).unwrap();
        assert_eq!(sampler.epoch_len(), 35);
        let mut seen = [0; 50];
        for epoch in 0..60 {
            let order = sampler.order(epoch);
            let mut counts = [0; 50];
            for &sample in &order {
                counts[sample as usize] += 1;
                seen[sample as usize] += 1;
            }
            assert_eq!(counts[..10].iter().sum::<usize>(), 25);
            assert!(counts[..10].iter().all(|&n| n == 2 || n == 3));
            assert!(counts[10..].iter().all(|&n| n <= 1));
        }
        if shuffle {
            assert!(seen[..10].iter().all(|n| (120..=180).contains(n)), "{seen:?}");
            assert!(seen[10..].iter().all(|n| (2..=32).contains(n)), "{seen:?}");
        }
    }
}

#[test]
fn broken_pictures_are_counted_and_named() {
    let data = Arc::new(Dataset::open(&[drawings("broken", 20, &[4, 9])]).unwrap());
    fs::remove_file(Path::new(env!("CARGO_TARGET_TMPDIR")).join("loader/broken/7.svg")).unwrap();
    let skip = |limit| LoaderConfig {
        on_broken: OnBroken::Skip { limit },
        epochs: Some(1),
        shuffle: false,
        ..config()
    };
    let batches = run(&data, skip(3), None);
    assert_eq!(batches.iter().map(|batch| batch.keys.len()).collect::<Vec<_>>(), [6, 7, 4]);
    let named: Vec<String> =
        batches.iter().flat_map(|batch| &batch.skipped).map(ToString::to_string).collect();
    assert!(named[0].contains("drawings.jsonl line 5: broken or truncated SVG"), "{named:?}");
    assert!(named[1].contains("7.svg"), "{named:?}");
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("loader/broken/7.svg"), "GIF89a")
        .unwrap();

    let last = |config| {
        let loader = Loader::new(Arc::clone(&data), config).unwrap();
        let mut batches = loader.batches(&loader.start()).unwrap();
        let error = batches.find_map(Result::err);
        assert!(batches.next().is_none(), "nothing comes after an error");
        error
    };
    assert!(matches!(last(skip(2)), Some(DatasetError::TooManyBroken { skipped: 3, .. })));
    let strict = LoaderConfig { on_broken: OnBroken::Error, ..skip(0) };
    assert!(matches!(last(strict), Some(DatasetError::Picture { .. })));
}

#[test]
fn a_batch_of_broken_pictures_alone_is_passed_over() {
    let broken: Vec<usize> = (4..8).collect();
    let data = Arc::new(Dataset::open(&[drawings("alone", 12, &broken)]).unwrap());
    let config = LoaderConfig {
        batch_size: 4,
        shuffle: false,
        epochs: Some(1),
        on_broken: OnBroken::Skip { limit: 4 },
        ..config()
    };
    let batches = run(&data, config, None);
    assert_eq!(batches.iter().map(|batch| batch.keys.len()).collect::<Vec<_>>(), [4, 4]);
    assert_eq!((batches[1].skipped.len(), batches[1].state_after.skipped), (4, 4));
}

#[test]
fn parts_are_the_batches_they_make_up() {
    let data = Arc::new(Dataset::open(&[drawings("parts", 43, &[11, 12, 30])]).unwrap());
    for (drop_last, part_size) in [(false, 3), (true, 3), (false, 1), (true, 8), (false, 20)] {
        let config = LoaderConfig { drop_last, on_broken: OnBroken::Skip { limit: 9 }, ..config() };
        let whole = run(&data, config.clone(), None);
        let loader = Loader::new(Arc::clone(&data), LoaderConfig { threads: 3, ..config }).unwrap();
        let mut joined: Vec<Batch> = Vec::new();
        let mut is_within = false;
        for part in loader.parts(&loader.start(), part_size).unwrap() {
            let mut part = part.unwrap();
            assert!(part.keys.len() <= part_size);
            let ends_batch = part.ends_batch;
            if is_within {
                let batch = joined.last_mut().unwrap();
                batch.pixels.append(&mut part.pixels);
                batch.captions.append(&mut part.captions);
                batch.labels.append(&mut part.labels);
                batch.keys.append(&mut part.keys);
                batch.state_after = part.state_after;
            } else {
                joined.push(part);
            }
            is_within = !ends_batch;
        }
        assert!(!is_within);
        assert_same(&joined, &whole);
    }
}

#[test]
fn evaluation_shows_what_a_model_sees_in_use() {
    let data = Arc::new(Dataset::open(&[drawings("evaluation", 11, &[])]).unwrap());
    let processor = Processor::openai(SIDE);
    let config = LoaderConfig {
        threads: 2,
        shuffle: false,
        epochs: Some(2),
        view: View::Eval(processor.clone()),
        ..config()
    };
    let batches = run(&data, config, None);
    assert_eq!(batches.len(), 4);
    for batch in batches {
        for (n, &index) in batch.indices.iter().enumerate() {
            let picture = decode(&data.picture(index).unwrap(), &Limits::default()).unwrap();
            let values = 3 * SIDE * SIDE;
            assert_eq!(batch.pixels[n * values..][..values], processor.pixels(&picture).unwrap());
            assert_eq!(batch.captions[n], format!("c{index}"));
        }
    }
}

#[test]
fn without_pictures_all_else_is_as_in_training() {
    let data = Arc::new(Dataset::open(&[drawings("unseen", 19, &[])]).unwrap());
    let broken = Arc::new(Dataset::open(&[drawings("unseen_broken", 19, &[3])]).unwrap());
    let seen = run(&data, config(), None);
    for data in [&data, &broken] {
        let unseen = run(data, LoaderConfig { view: View::None, ..config() }, None);
        assert_eq!(unseen.len(), seen.len());
        for (a, b) in unseen.iter().zip(&seen) {
            assert!(a.pixels.is_empty());
            assert_eq!((&a.captions, &a.labels, &a.indices), (&b.captions, &b.labels, &b.indices));
            assert_eq!(a.state_after, b.state_after);
        }
    }
}

#[test]
fn settings_and_states_are_checked() {
    let data = Arc::new(Dataset::open(&[drawings("settings", 11, &[])]).unwrap());
    let error =
        |config| Loader::new(Arc::clone(&data), config).map(|_| ()).unwrap_err().to_string();
    assert!(error(LoaderConfig { batch_size: 0, ..config() }).contains("batch_size is 0"));
    assert!(error(LoaderConfig { threads: 0, ..config() }).contains("threads is 0"));
    let dropping = LoaderConfig { drop_last: true, ..config() };
    assert!(error(LoaderConfig { batch_size: 12, ..dropping.clone() }).contains("drop_last"));

    let loader = Loader::new(Arc::clone(&data), dropping).unwrap();
    assert_eq!(loader.batches_per_epoch(), 1);
    let batches: Vec<_> = loader.batches(&loader.start()).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|batch| batch.epoch).collect::<Vec<_>>(), [0, 1, 2]);
    let other = DataState { seed: 6, ..loader.start() };
    let error = loader.batches(&other).unwrap_err().to_string();
    assert!(error.contains("seed = 6, this run has 5"), "{error}");
    let other = DataState { samples: 12, ..loader.start() };
    assert!(loader.batches(&other).is_err());
}

#[test]
fn batches_without_end_stop_when_dropped() {
    let data = Arc::new(Dataset::open(&[drawings("endless", 11, &[])]).unwrap());
    let config = LoaderConfig { epochs: None, threads: 3, ..config() };
    let loader = Loader::new(data, config).unwrap();
    let epochs: Vec<u64> =
        loader.batches(&loader.start()).unwrap().take(9).map(|b| b.unwrap().epoch).collect();
    assert_eq!(epochs, [0, 0, 1, 1, 2, 2, 3, 3, 4]);
}
