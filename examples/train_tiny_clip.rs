//! A CLIP from nothing on seven drawings with captions, in seconds: it learns them by heart.
//!
//! Run: `cargo run --release --example train_tiny_clip -- runs/tiny_clip`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use ocelli_train::{RunOptions, TrainConfig, run};
use std::error::Error;

const RECIPE: &str = r#"
model = { family = "clip", image_size = 32, embed_dim = 32, vision = { patch_size = 8, width = 48, depth = 2, heads = 3 }, text = { context_length = 8, width = 48, depth = 1, heads = 3 }, tokenizer = { train_vocab_size = 540 } }
data = { sources = [{ path = "examples/pictures/captions.jsonl" }] }
train = { stage = "contrastive", steps = 60, global_batch_size = 7 }
optim = { name = "adamw", lr = 1e-3 }
schedule = { name = "cosine", warmup_ratio = 0.1 }
freeze = { vision = "none", text = "none" }
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).unwrap_or("runs/tiny_clip".to_owned());
    let config = TrainConfig::parse(RECIPE, "the recipe above", &[])?;
    let options = RunOptions { folder: folder.clone().into(), ..RunOptions::default() };
    let summary = run(&config, &options)?;
    println!(
        "loss {:.3} after {} steps; a guess has {:.3}",
        summary.loss,
        summary.steps,
        7_f32.ln()
    );
    println!("ocelli match -m {folder}/export --text 'a red fox' examples/pictures/fox.svg");
    Ok(())
}
