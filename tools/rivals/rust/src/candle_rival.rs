//! candle with the models of candle-transformers.

use std::fs::File;
use std::path::Path;

use anyhow::{Result, bail};
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::quantized_llama::ModelWeights;
use candle_transformers::models::vit;

use crate::{Work, ids, pixels};

/// Steps of an answer before the cache is made anew.
const ANSWER: usize = 128;

/// Pictures through ViT-B/16, or a token through a LLaMA of GGUF blocks.
pub fn work(task: &str, dtype: &str, size: usize, data: &Path) -> Result<Work> {
    match (task, dtype) {
        ("vit-b16", "f32") => encode(size, data),
        ("decode", "q4_0" | "q8_0") => language(size, &data.join(format!("llama_1b_{dtype}.gguf"))),
        _ => bail!("candle does not run {task} in {dtype}"),
    }
}

fn encode(batch: usize, data: &Path) -> Result<Work> {
    let file = data.join("vit_b16_hf/model.safetensors");
    // SAFETY: nothing writes the file while it is mapped.
    let weights =
        unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu)? };
    let model = vit::Model::new(&vit::Config::vit_base_patch16_224(), 1000, weights)?;
    let input =
        Tensor::from_vec(pixels(batch * 3 * 224 * 224), (batch, 3, 224, 224), &Device::Cpu)?;
    Ok(Box::new(move || {
        model.forward(&input)?;
        Ok(())
    }))
}

fn language(tokens: usize, path: &Path) -> Result<Work> {
    let mut file = File::open(path)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let prompt = Tensor::from_vec(ids(tokens), (1, tokens), &Device::Cpu)?;
    let token = Tensor::from_vec(ids(1), (1, 1), &Device::Cpu)?;
    model.forward(&prompt, 0)?;
    let mut position = tokens;
    Ok(Box::new(move || {
        if position == tokens + ANSWER {
            model.forward(&prompt, 0)?;
            position = tokens;
        }
        model.forward(&token, position)?;
        position += 1;
        Ok(())
    }))
}
