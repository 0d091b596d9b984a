//! How pictures are prepared for a model.

use super::fields::Fields;
use super::{
    Family, Files, HeadCounts, Model, blip_config, blip2_config, clip_config, flamingo_config,
    llava_config, minigpt4_config, mplug_owl_config, nfnet_config, qwen_vl_config, read_text,
    visualglm_config, xcomposer_config,
};
use crate::{Error, Result};
use ocelli_data::image::{PictureError, Processor};
use serde_json::Value;

impl Files {
    /// How pictures are prepared for the model. Needs no weights, except for OpenAI's archives,
    /// whose picture size is known from them alone.
    ///
    /// # Errors
    /// If a processor file cannot be read.
    pub fn processor(&self) -> Result<Processor> {
        // The error names the file.
        let path = self.dir().to_owned();
        let picture = |source| Error::Data(ocelli_data::Error::Picture { path, source });
        let at = self.dir().join("preprocessor_config.json");
        if at.is_file() {
            // What the library takes for a model whose file does not say.
            let usual = match self.family {
                Family::TransformersVit => "ViTImageProcessor",
                Family::Dinov2 => "BitImageProcessor",
                Family::TransformersClip => "CLIPImageProcessor",
                Family::TransformersBlip | Family::TransformersBlip2 | Family::InstructBlip => {
                    "BlipImageProcessor"
                }
                _ => "",
            };
            return Processor::from_hf_json_or(&read_text(&at)?, usual).map_err(picture);
        }
        let config = self.config.to_string();
        match self.family {
            Family::OpenClip => Processor::from_open_clip_json(&config).map_err(picture),
            Family::TimmVit | Family::TimmHybrid | Family::TimmNfNet
                if self.config.get("pretrained_cfg").is_some() =>
            {
                Processor::from_timm_json(&config).map_err(picture)
            }
            Family::TransformersClip => {
                let size = clip_config::transformers(&self.config, &self.config_file())?;
                Ok(Processor::openai(size.vision.image_size().0))
            }
            Family::OpenAiClip => {
                let weights = self.weights()?;
                let size = clip_config::openai(&weights, &self.path, HeadCounts::default())?;
                Ok(Processor::openai(size.vision.image_size().0))
            }
            Family::TransformersBlip | Family::OriginalBlip => {
                let weights = || self.weights();
                let (height, width) = blip_config::image_size(
                    self.family,
                    &self.config,
                    &self.config_file(),
                    &weights,
                )?;
                squeezed(height, width).map_err(picture)
            }
            Family::TransformersBlip2 | Family::InstructBlip | Family::LavisBlip2 => {
                let weights = || self.weights();
                let of = blip2_config::image_size(self.family, &self.config, &weights);
                let (height, width) = of?;
                squeezed(height, width).map_err(picture)
            }
            Family::Llava if llava_config::is_original(&self.config) => {
                llava_config::processor(&self.config, &self.config_file())
            }
            Family::Flamingo => {
                let weights = self.weights()?;
                let file = self.config_file();
                let (side, is_clip) = flamingo_config::image_size(&self.config, &weights, &file)?;
                if is_clip {
                    return Ok(Processor::openai(side));
                }
                nfnet_processor(side, "border").map_err(picture)
            }
            Family::MiniGpt4 => {
                let weights = self.weights()?;
                let file = self.config_file();
                let (height, width) = minigpt4_config::image_size(&self.config, &weights, &file)?;
                squeezed(height, width).map_err(picture)
            }
            Family::MplugOwl | Family::QwenVl | Family::VisualGlm | Family::XComposer => {
                let size = match self.family {
                    Family::MplugOwl => mplug_owl_config::image_size,
                    Family::QwenVl => qwen_vl_config::image_size,
                    Family::VisualGlm => visualglm_config::image_size,
                    _ => xcomposer_config::image_size,
                };
                let (height, width) = size(&self.config, &self.config_file())?;
                squeezed(height, width).map_err(picture)
            }
            Family::Ocelli => self.own_processor(),
            Family::Bert
            | Family::QFormer
            | Family::FlamingoParts
            | Family::Llama
            | Family::Gpt2
            | Family::Opt
            | Family::GptNeox
            | Family::Mpt
            | Family::T5
            | Family::Gguf => {
                let is = match self.family {
                    Family::Bert => "a BERT",
                    Family::QFormer => "a Q-Former",
                    Family::FlamingoParts => "parts of a Flamingo",
                    Family::Gpt2 => "a GPT-2",
                    Family::Opt => "an OPT",
                    Family::GptNeox => "a GPT-NeoX",
                    Family::Mpt => "an MPT",
                    Family::T5 => "a T5",
                    _ => "a LLaMA",
                };
                let (what, needs) = ("preparing pictures", "a model that sees");
                Err(Error::Unsuitable { what, needs, is: is.to_owned() })
            }
            Family::Llava => Err(Error::Io {
                path: at,
                source: std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "there is no such file; fetch it, it says how pictures are prepared",
                ),
            }),
            Family::TimmNfNet => {
                let side = nfnet_config::nfnet(&Fields::new(&self.config, &self.config_file()))?
                    .image_size;
                nfnet_processor(side, "squash").map_err(picture)
            }
            _ => {
                let (height, width) = self.vit_config()?.image_size;
                vit_processor(height, width).map_err(picture)
            }
        }
    }

    fn own_processor(&self) -> Result<Processor> {
        let text = self.config.get("preprocessing").map(Value::to_string).unwrap_or_default();
        let path = self.config_file();
        Processor::from_hf_json(&text)
            .map_err(|source| Error::Data(ocelli_data::Error::Picture { path, source }))
    }
}

impl Model {
    /// How pictures are prepared for a ViT, an `NFNet` or a CLIP where no file says; none for others.
    pub fn usual_processor(&self) -> Option<Processor> {
        match self {
            Self::Vit(vit) => {
                let (height, width) = vit.config().image_size;
                vit_processor(height, width).ok()
            }
            Self::NfNet(net) => nfnet_processor(net.config().image_size, "squash").ok(),
            Self::Clip(clip) => Some(Processor::openai(clip.config().vision.image_size().0)),
            _ => None,
        }
    }
}

/// The original ViT preprocessing: squeezed to the size, [-1, 1].
fn vit_processor(height: usize, width: usize) -> std::result::Result<Processor, PictureError> {
    let text = format!(
        r#"{{"image_processor_type": "ViTImageProcessor", "do_resize": true,
        "size": {{"height": {height}, "width": {width}}}, "resample": 2,
        "do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": true,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}"#
    );
    Processor::from_hf_json(&text)
}

/// To a square in the mode of timm, then as for ImageNet.
fn nfnet_processor(side: usize, mode: &str) -> std::result::Result<Processor, PictureError> {
    let text = format!(
        r#"{{"input_size": [3, {side}, {side}], "crop_pct": 1.0, "crop_mode": "{mode}",
        "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225]}}"#
    );
    Processor::from_timm_json(&text)
}

/// Squeezed to the size, then as CLIP.
fn squeezed(height: usize, width: usize) -> std::result::Result<Processor, PictureError> {
    let text = format!(
        r#"{{"image_processor_type": "BlipImageProcessor",
        "size": {{"height": {height}, "width": {width}}}}}"#
    );
    Processor::from_hf_json(&text)
}
