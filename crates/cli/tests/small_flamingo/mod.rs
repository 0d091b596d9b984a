//! The small Flamingo of the reference with the vocabulary of a tokenizer, and with embeddings of frames.

use super::widened::{Folder, ocelli, widened};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};

/// Rows of the tables, more than the tokenizer has pieces.
const VOCAB: usize = 1000;
/// Width of the features.
const WIDTH: usize = 32;

/// The stored MPT with words, whose resampler tells `frames` frames apart. Which ids its pictures and
/// their ends have, the tokenizer says.
pub(crate) fn small_flamingo(frames: usize) -> Folder {
    let words = ["models/blip2_opt", "vocab.json"];
    let tables = [".wte.weight", ".lm_head.weight"];
    let folder = widened("flamingo/openflamingo_mpt", &tables, VOCAB, words, |config| {
        config["lm_config"]["max_seq_len"] = 1024.into();
        for id in ["media_token_id", "eoc_token_id"] {
            config.as_object_mut().unwrap().remove(id);
        }
    });
    if frames > 0 {
        let file = std::path::Path::new(folder.path()).join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let value = |i: usize| ((i as f32) * 78.233).sin() * 2.0;
        let table: Vec<u8> = (0..frames * WIDTH).flat_map(|i| value(i).to_le_bytes()).collect();
        let table = TensorView::new(Dtype::F32, vec![frames, WIDTH], &table).unwrap();
        tensors.push(("perceiver.frame_embs".to_owned(), table));
        serialize_to_file(tensors, None, &file).unwrap();
    }
    folder
}

/// What the model writes behind a prompt that is spelled out.
pub(crate) fn behind(model: &str, prompt: &str, images: &[&str], options: &[&str]) -> String {
    let mut arguments = vec!["generate", "-m", model, "-n", "8", "-i", prompt];
    for image in images {
        arguments.extend(["--image", image]);
    }
    arguments.extend(options);
    ocelli(&arguments, "").trim().to_owned()
}
