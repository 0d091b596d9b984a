//! A conversation about one picture: each line of standard input is a message.
//!
//! Run: `cargo run --release --example chat -- testdata/golden/llava/hf_v15 examples/pictures/fox.svg`
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use ocelli_data::image::{Limits, open};
use ocelli_data::text::{Template, Turn};
use ocelli_models::generate::{Flow, Settings};
use ocelli_models::systems::talker::{Conversation, ids};
use ocelli_models::{Files, HeadCounts};
use ocelli_tensor::{Tensor, no_grad};
use std::error::Error;
use std::io::{Write, stdin, stdout};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [model, picture] = &given[..] else { return Err("name a model and a picture".into()) };
    let files = Files::find(Path::new(model), None)?;
    let (processor, tokenizer) = (files.processor()?, files.language_tokenizer()?);
    let settings = Settings::greedy(64, &files.end_tokens()?);
    let model = files.open(HeadCounts::default())?.model;
    let talker = model.talker().ok_or("this model does not talk about pictures")?;
    let template = Template::named(talker.template()).ok_or("no such template")?;

    let picture = open(picture, &Limits::default())?;
    let (width, height) = processor.size_for(picture.width(), picture.height())?;
    let pixels = Tensor::from_slice(&processor.pixels(&picture)?, &[1, 3, height, width])?;
    let shown = no_grad(|| talker.pictures(&pixels))?; // [image tokens, width], one picture

    let mut conversation = Conversation::new(talker.language());
    let mut turns: Vec<Turn> = Vec::new();
    for line in stdin().lines() {
        // The picture comes with the first message.
        turns.extend(template.show(usize::from(turns.is_empty()), &line?));
        let text = template.render(&turns);
        let ids = ids(&tokenizer, &text, talker.reading());
        let mut stream = tokenizer.stream(true);
        let mut print = |id| {
            print!("{}", stream.push(id));
            let is_gone = stdout().flush().is_err();
            if is_gone { Flow::Stop } else { Flow::Continue }
        };
        let answer = conversation.answer(talker.language(), &ids, &shown, &settings, &mut print)?;
        println!("{}", stream.finish());
        if let Some(turn) = turns.last_mut() {
            turn.answer = Some(tokenizer.decode(&answer.ids, true).trim().to_owned());
        }
    }
    Ok(())
}
