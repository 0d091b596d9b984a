//! rten on the ONNX files, its weights packed at load.

use std::path::Path;

use anyhow::{Result, bail};
use rten::ModelOptions;
use rten_tensor::{AsView, Tensor};

use crate::{Work, pixels};

/// Pictures through a vision tower.
pub fn work(task: &str, dtype: &str, batch: usize, data: &Path) -> Result<Work> {
    let name = match (task, dtype) {
        ("vit-b16", "f32") => "vit_b16.onnx",
        ("vit-b16", "int8") => "vit_b16_int8.onnx",
        ("clip-l14", "int8") => "clip_l14_int8.onnx",
        _ => bail!("rten does not run {task} in {dtype}"),
    };
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(true);
    let model = options.load_file(data.join(name))?;
    let input = Tensor::from_data(&[batch, 3, 224, 224], pixels(batch * 3 * 224 * 224));
    Ok(Box::new(move || {
        model.run_one(input.view().into(), None)?;
        Ok(())
    }))
}
