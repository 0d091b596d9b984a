//! Any bytes as the rows of a table: no panic, and each row that was indexed is read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ocelli_data::dataset::{Dataset, SourceConfig};

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("ocelli-fuzz-{}.csv", std::process::id()));
    let table = [b"filepath,title,kind\n", bytes].concat();
    std::fs::write(&path, table).expect("the temporary folder is writable");
    let mut config = SourceConfig::new(path.to_string_lossy());
    config.label_key = Some("kind".to_owned());
    if let Ok(dataset) = Dataset::open(&[config]) {
        for index in 0..dataset.len() {
            dataset.annotation(index).expect("the row was sound when it was indexed");
        }
    }
});
