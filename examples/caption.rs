//! What each picture shows, in a sentence.
//!
//! Run: `cargo run --release --example caption -- testdata/golden/blip/caption examples/pictures/fox.svg`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use ocelli_data::image::{Limits, open};
use ocelli_models::generate::Flow;
use ocelli_models::systems::writer::Request;
use ocelli_models::{Files, HeadCounts};
use ocelli_tensor::{Tensor, no_grad};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let model = given.next().ok_or("name a model and pictures")?;
    let files = Files::find(Path::new(&model), None)?;
    let (processor, tokenizer) = (files.processor()?, files.language_tokenizer()?);
    let model = files.open(HeadCounts::default())?.model;
    let writer = model.writer().ok_or("this model does not write about pictures")?;

    let request = Request::Caption(None);
    let settings = writer.usual(&request);
    for path in given {
        let picture = open(&path, &Limits::default())?;
        let (width, height) = processor.size_for(picture.width(), picture.height())?;
        let pixels = Tensor::from_slice(&processor.pixels(&picture)?, &[1, 3, height, width])?;
        let mut go_on = |_, _| Flow::Continue;
        let answers =
            no_grad(|| writer.write(&pixels, &request, &tokenizer, &settings, &mut go_on))?;
        for answer in answers {
            println!("{path}: {}", tokenizer.decode(&answer.ids, true).trim());
        }
    }
    Ok(())
}
