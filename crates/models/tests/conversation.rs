//! A conversation reads what was not read before, and answers as if all were read at once.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

use ocelli_data::text::Tokenizer;
use ocelli_models::connector::splice::IMAGE;
use ocelli_models::generate::{Cache, Decoder, Flow, Rows, Settings};
use ocelli_models::language::causal::CausalModel;
use ocelli_models::systems::talker::{Conversation, Reading, ids};
use ocelli_models::{Files, HeadCounts, Result};
use ocelli_tensor::Tensor;
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

/// A language model that counts the tokens it reads.
struct Counting<'a> {
    model: &'a dyn CausalModel,
    read: Cell<usize>,
}

impl Decoder for Counting<'_> {
    fn context_length(&self) -> Option<usize> {
        self.model.context_length()
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.model.embed(ids)
    }

    fn advance(&self, rows: &Rows, cache: &mut Cache) -> Result<Tensor> {
        self.read.set(self.read.get() + rows.embeddings.shape()[1]);
        self.model.advance(rows, cache)
    }
}

impl CausalModel for Counting<'_> {
    fn features(&self, embeddings: &Tensor, mask: Option<&Arc<[u8]>>) -> Result<Tensor> {
        self.model.features(embeddings, mask)
    }

    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.model.logits(features)
    }

    fn new_cache(&self, batch: usize) -> Cache {
        self.model.new_cache(batch)
    }
}

#[test]
fn a_turn_reads_new_tokens_alone() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/backbones/llama_gqa");
    let opened = Files::find(&path, None).unwrap().open(HeadCounts::default()).unwrap();
    let model = Counting { model: opened.model.causal().unwrap(), read: Cell::new(0) };
    let settings = Settings::greedy(6, &[]);
    let answer = |conversation: &mut Conversation, ids: &[u32]| -> (Vec<u32>, usize) {
        let before = model.read.get();
        let mut go_on = |_| Flow::Continue;
        let answer = conversation.answer(&model, ids, &[], &settings, &mut go_on).unwrap();
        (answer.ids, model.read.get() - before)
    };
    let mut conversation = Conversation::new(&model);
    let first = [1, 300, 301, 302, 303];
    let (said, read) = answer(&mut conversation, &first);
    // The last token of an answer is chosen, not read.
    assert_eq!((said.len(), read), (6, first.len() + 5));
    let second = [&first[..], &said, &[2, 310, 311]].concat();
    let (said, read) = answer(&mut conversation, &second);
    assert_eq!(read, 1 + 3 + 5);
    assert_eq!(said, answer(&mut Conversation::new(&model), &second).0);
    // What was said is changed from its third token on: from there all is read again.
    let changed = [&first[..], &second[5..7], &[400, 401]].concat();
    let (said, read) = answer(&mut conversation, &changed);
    assert_eq!(read, 2 + 5);
    assert_eq!(said, answer(&mut Conversation::new(&model), &changed).0);
}

/// Ids of transformers 5.24.0 for the tokenizer of `testdata/golden/llava/hf_v15` with `legacy` true and
/// false.
#[test]
fn text_behind_a_picture_goes_on_where_the_tokenizer_says_so() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/llava/hf_v15");
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer.model", "added_tokens.json"] {
        std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(from.join("tokenizer_config.json")).unwrap();
    let reading = Reading { goes_on: true, around: None };
    for (legacy, text, want) in [
        ("true", "<image>\nWhat is", &[1, 640, 565, 13, 626, 578, 269, 369][..]),
        ("false", "<image>\nWhat is", &[1, 640, 13, 626, 578, 269, 369]),
        ("false", "<image> <image>What", &[1, 640, 565, 640, 626, 578, 269]),
        ("false", "<image>Hi", &[1, 640, 633, 570]),
        ("true", "<image>Hi", &[1, 640, 492, 570]),
    ] {
        let config = config.replace("\"legacy\": true", &format!("\"legacy\": {legacy}"));
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let got: Vec<u32> =
            ids(&tokenizer, text, reading).iter().map(|id| (*id).min(640)).collect();
        assert_eq!(got, want, "legacy {legacy}, {text:?}");
    }
    // The original code reads each piece by itself, and its first weights have tokens around pictures.
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let anew = ids(&tokenizer, "<image>Hi", Reading::default());
    assert_eq!(anew[2..], tokenizer.encode("Hi", false)[..]);
    let around = Some(["<unk>", "</s>"]);
    let framed = ids(&tokenizer, "<image>", Reading { goes_on: false, around });
    assert_eq!(framed, [1, 0, IMAGE, 2]);
}
