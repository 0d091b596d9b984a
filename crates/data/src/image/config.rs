//! Preprocessing files of the published checkpoints: Hugging Face, `open_clip` and timm.

use serde_json::Value;

use super::{
    error::PictureError,
    processor::{CLIP_MEAN, CLIP_STD, Crop, Order, Processor, Resize, Rounding},
    resize::Filter,
};

const HF: &str = "preprocessor_config.json";
const OPEN_CLIP: &str = "open_clip_config.json";
const TIMM: &str = "config.json";

/// Mean and deviation timm and several Hugging Face classes fall back to.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

impl Processor {
    /// Reads `preprocessor_config.json`, or the `image_processor` part of `processor_config.json`.
    ///
    /// Classes `ViT`, `DeiT`, `CLIP`, `ChineseCLIP`, `Blip`, `Bit` (`DINOv2`), `Siglip` and `Llava`, under their
    /// present and former names; `do_*` switches are honoured. The bytes are those of the Pillow backend.
    /// `LLaVA` checkpoints keep "pad to a square" in their model file:
    /// see [`Processor::padded_to_square`].
    ///
    /// # Errors
    /// When the text is no JSON, names an unknown class, or a field has an unknown value.
    pub fn from_hf_json(text: &str) -> Result<Self, PictureError> {
        Self::from_hf_json_or(text, "")
    }

    /// As [`Processor::from_hf_json`], for a file that may not name its class, which is `usual` then:
    /// that of the model, such as `"CLIPImageProcessor"`.
    ///
    /// # Errors
    /// As there.
    pub fn from_hf_json_or(text: &str, usual: &str) -> Result<Self, PictureError> {
        let root = parse(HF, text)?;
        let config = Fields { file: HF, object: root.get("image_processor").unwrap_or(&root) };
        let family = hf_family(&config, usual)?;

        let do_resize = config.flag("do_resize", true)?;
        let size = config.object.get("size").unwrap_or(&Value::Null);
        let resize = match family.defaults {
            _ if !do_resize => Resize::None,
            (default, by_aspect) => config.hf_size(size, default, by_aspect)?,
        };
        let crop = if config.flag("do_center_crop", family.crops)? {
            let size = match config.object.get("crop_size") {
                None | Some(Value::Null) => (family.defaults.0, family.defaults.0),
                Some(value) => config.sides("crop_size", value)?,
            };
            Some(Crop { size, rounding: Rounding::Floor })
        } else {
            None
        };
        let rescale = match config.object.get("rescale_factor") {
            _ if !config.flag("do_rescale", true)? => 1.0,
            None | Some(Value::Null) => 1.0 / 255.0,
            Some(value) => value
                .as_f64()
                .ok_or_else(|| config.wrong("rescale_factor", value, "a number such as 1/255"))?,
        };
        let (mean, std) = if config.flag("do_normalize", true)? {
            let (mean, std) = family.colors;
            (config.triple("image_mean", mean)?, config.deviations("image_std", std)?)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let filter = match config.object.get("resample") {
            None | Some(Value::Null) => family.filter,
            Some(value) => match value.as_u64() {
                Some(0) => Filter::Nearest,
                Some(2) => Filter::Bilinear,
                Some(3) => Filter::Bicubic,
                _ => {
                    let expected = "0 (nearest), 2 (bilinear) or 3 (bicubic)";
                    return Err(config.wrong("resample", value, expected));
                }
            },
        };
        let order = Order::RgbFirst;
        let this = Self { resize, filter, crop, order, pad_to_square: None, rescale, mean, std };
        Ok(if family.pads && config.flag("do_pad", false)? {
            this.padded_to_square()
        } else {
            this
        })
    }

    /// Reads `open_clip_config.json`: its `preprocess_cfg` and `model_cfg.vision_cfg.image_size`.
    ///
    /// # Errors
    /// When the text is no JSON, the image size is missing, or a field has an unknown value.
    pub fn from_open_clip_json(text: &str) -> Result<Self, PictureError> {
        let root = parse(OPEN_CLIP, text)?;
        let null = Value::Null;
        let object = root.get("preprocess_cfg").unwrap_or(&null);
        let config = Fields { file: OPEN_CLIP, object };
        let vision = root.pointer("/model_cfg/vision_cfg").unwrap_or(&null);
        let size = config
            .object
            .get("size")
            .or_else(|| vision.get("image_size"))
            .or_else(|| root.pointer("/vision_cfg/image_size"))
            .unwrap_or(&null);
        let (width, height) = config.sides("image_size", size)?;
        if let Some(fill) = object.get("fill_color").filter(|fill| fill.as_f64() != Some(0.0)) {
            return Err(config.wrong("fill_color", fill, "0"));
        }
        let filter = match config.text("interpolation", "bicubic")? {
            "bicubic" | "random" => Filter::Bicubic,
            "bilinear" => Filter::Bilinear,
            _ => return Err(config.wrong_at("interpolation", "bicubic or bilinear")),
        };
        let square = width == height;
        let resize = match config.text("resize_mode", "shortest")? {
            "shortest" if square => Resize::ShortestEdge(width),
            "longest" if square => Resize::LongestEdge(width),
            "squash" => Resize::Exact(width, height),
            _ => {
                let expected = "shortest or longest with a square image size, or squash";
                return Err(config.wrong_at("resize_mode", expected));
            }
        };
        let crop = (!matches!(resize, Resize::Exact(..)))
            .then_some(Crop { size: (width, height), rounding: Rounding::HalfEven });
        let mean = config.triple("mean", CLIP_MEAN)?;
        let std = config.deviations("std", CLIP_STD)?;
        Ok(Self { resize, filter, crop, mean, std, ..Self::openai(width) })
    }

    /// Reads timm's `config.json`: its `pretrained_cfg`.
    ///
    /// # Errors
    /// When the text is no JSON, the input size is missing, or a field has an unknown value.
    pub fn from_timm_json(text: &str) -> Result<Self, PictureError> {
        let root = parse(TIMM, text)?;
        let config = Fields { file: TIMM, object: root.get("pretrained_cfg").unwrap_or(&root) };
        let input = config.object.get("input_size").unwrap_or(&Value::Null);
        let side = |at: usize| {
            input
                .get(at)
                .and_then(Value::as_u64)
                .filter(|side| (1..=MAX_SIDE).contains(side))
                .map(|side| side as usize)
                .ok_or_else(|| config.wrong("input_size", input, "[3, height, width]"))
        };
        let (height, width) = (side(1)?, side(2)?);
        let crop_pct = match config.object.get("crop_pct") {
            None | Some(Value::Null) => 0.875,
            Some(value) => value
                .as_f64()
                .filter(|pct| *pct > 0.01 && *pct <= 1.0)
                .ok_or_else(|| config.wrong("crop_pct", value, "a number in (0.01, 1]"))?,
        };
        let scaled = |side: usize| (side as f64 / crop_pct).floor() as usize;
        let square = width == height;
        let resize = match config.text("crop_mode", "center")? {
            "center" if square => Resize::ShortestEdge(scaled(width)),
            "border" if square => Resize::LongestEdge(scaled(width)),
            "squash" => Resize::Exact(scaled(width), scaled(height)),
            _ => {
                let expected = "center or border with a square input size, or squash";
                return Err(config.wrong_at("crop_mode", expected));
            }
        };
        let filter = match config.text("interpolation", "bicubic")? {
            "bicubic" | "random" => Filter::Bicubic,
            "bilinear" => Filter::Bilinear,
            "nearest" => Filter::Nearest,
            _ => return Err(config.wrong_at("interpolation", "bicubic, bilinear or nearest")),
        };
        Ok(Self {
            resize,
            filter,
            crop: Some(Crop { size: (width, height), rounding: Rounding::HalfEven }),
            order: Order::RgbFirst,
            pad_to_square: None,
            rescale: 1.0 / 255.0,
            mean: config.triple("mean", IMAGENET_MEAN)?,
            std: config.deviations("std", IMAGENET_STD)?,
        })
    }
}

/// No published model reads larger pictures; it bounds what a hostile file can ask for.
const MAX_SIDE: u64 = 8192;

/// What a Hugging Face class does where its file is silent.
struct HfFamily {
    /// Side in pixels, and whether a bare number means the shorter edge.
    defaults: (usize, bool),
    crops: bool,
    pads: bool,
    filter: Filter,
    colors: ([f32; 3], [f32; 3]),
}

fn hf_family(config: &Fields<'_>, usual: &str) -> Result<HfFamily, PictureError> {
    let key = ["image_processor_type", "feature_extractor_type"]
        .into_iter()
        .find(|key| config.object.get(key).is_some());
    let name = key.map_or(usual, |key| config.object[key].as_str().unwrap_or_default());
    let base = name.trim_end_matches("Fast").trim_end_matches("Pil");
    let base = base.trim_end_matches("ImageProcessor").trim_end_matches("FeatureExtractor");
    let half = ([0.5; 3], [0.5; 3]);
    let clip = (CLIP_MEAN, CLIP_STD);
    let imagenet = (IMAGENET_MEAN, IMAGENET_STD);
    let family = |defaults, crops, filter, colors| HfFamily {
        defaults,
        crops,
        pads: base == "Llava",
        filter,
        colors,
    };
    match base {
        "ViT" => Ok(family((224, false), false, Filter::Bilinear, half)),
        "DeiT" => Ok(family((256, false), true, Filter::Bicubic, imagenet)),
        "CLIP" | "Bit" | "ChineseCLIP" | "Llava" => {
            Ok(family((224, true), true, Filter::Bicubic, clip))
        }
        "Blip" => Ok(family((384, false), false, Filter::Bicubic, clip)),
        "Siglip" => Ok(family((224, false), false, Filter::Bicubic, half)),
        _ => Err(PictureError::Field {
            file: HF,
            field: "image_processor_type",
            found: key.map_or("missing".into(), |key| config.object[key].to_string()),
            expected: "ViT, DeiT, CLIP, ChineseCLIP, Blip, Bit, Siglip or Llava + ImageProcessor",
        }),
    }
}

fn parse(file: &'static str, text: &str) -> Result<Value, PictureError> {
    serde_json::from_str(text).map_err(|e| PictureError::Json { file, reason: e.to_string() })
}

/// The object of a file that holds the settings.
struct Fields<'a> {
    file: &'static str,
    object: &'a Value,
}

impl Fields<'_> {
    fn wrong(&self, field: &'static str, found: &Value, expected: &'static str) -> PictureError {
        let found = if found.is_null() { "missing".into() } else { found.to_string() };
        PictureError::Field { file: self.file, field, found, expected }
    }

    fn wrong_at(&self, field: &'static str, expected: &'static str) -> PictureError {
        self.wrong(field, self.object.get(field).unwrap_or(&Value::Null), expected)
    }

    fn flag(&self, field: &'static str, default: bool) -> Result<bool, PictureError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(self.wrong(field, value, "true or false")),
        }
    }

    fn text(&self, field: &'static str, default: &'static str) -> Result<&str, PictureError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::String(value)) => Ok(value),
            Some(value) => Err(self.wrong(field, value, "a text")),
        }
    }

    fn triple(&self, field: &'static str, default: [f32; 3]) -> Result<[f32; 3], PictureError> {
        let value = match self.object.get(field) {
            None | Some(Value::Null) => return Ok(default),
            Some(value) => value,
        };
        // Each number is rounded to f32 once, as the references do.
        let numbers: Option<Vec<f32>> = value
            .as_array()
            .and_then(|all| all.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        numbers
            .and_then(|all| <[f32; 3]>::try_from(all).ok())
            .ok_or_else(|| self.wrong(field, value, "three numbers"))
    }

    /// What channels are divided by.
    fn deviations(&self, field: &'static str, default: [f32; 3]) -> Result<[f32; 3], PictureError> {
        let all = self.triple(field, default)?;
        if all.iter().all(|v| *v > 0.0 && v.is_finite()) {
            return Ok(all);
        }
        let value = self.object.get(field).unwrap_or(&Value::Null);
        Err(self.wrong(field, value, "three numbers over 0"))
    }

    fn side(value: &Value) -> Option<usize> {
        value.as_u64().filter(|side| (1..=MAX_SIDE).contains(side)).map(|side| side as usize)
    }

    /// `n`, `[height, width]` or `{"height": .., "width": ..}`, as width and height.
    fn sides(&self, field: &'static str, value: &Value) -> Result<(usize, usize), PictureError> {
        let sides = match value {
            Value::Array(sides) if sides.len() == 2 => {
                Self::side(&sides[1]).zip(Self::side(&sides[0]))
            }
            Value::Object(sides) => sides
                .get("width")
                .and_then(Self::side)
                .zip(sides.get("height").and_then(Self::side)),
            value => Self::side(value).map(|side| (side, side)),
        };
        let expected = "a side, [height, width] or {height, width}, each from 1 to 8192";
        sides.ok_or_else(|| self.wrong(field, value, expected))
    }

    fn hf_size(
        &self,
        value: &Value,
        default: usize,
        by_aspect: bool,
    ) -> Result<Resize, PictureError> {
        let single =
            |side| if by_aspect { Resize::ShortestEdge(side) } else { Resize::Exact(side, side) };
        match value {
            Value::Null => Ok(single(default)),
            Value::Number(_) => Ok(single(self.sides("size", value)?.0)),
            Value::Object(sides) if sides.len() == 1 && sides.contains_key("shortest_edge") => {
                Ok(Resize::ShortestEdge(self.sides("size", &sides["shortest_edge"])?.0))
            }
            value => {
                let (width, height) = self.sides("size", value)?;
                Ok(Resize::Exact(width, height))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(result: Result<Processor, PictureError>) -> String {
        result.map_or_else(|e| e.to_string(), |processor| panic!("read as {processor:?}"))
    }

    #[test]
    fn hugging_face_files() {
        // The published files of openai/clip-vit-base-patch32 (old), google/vit-base-patch16-224 (old),
        // facebook/dinov2-base and Salesforce/blip-image-captioning-base, by their settings.
        let clip = r#"{"crop_size": 224, "do_center_crop": true, "do_normalize": true,
            "do_resize": true, "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224}"#;
        let clip = Processor::from_hf_json(clip).expect("a sound file");
        let crop = Some(Crop { size: (224, 224), rounding: Rounding::Floor });
        let expected = Processor { order: Order::RgbFirst, crop, ..Processor::openai(224) };
        assert_eq!(clip, expected);

        let vit = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "feature_extractor_type": "ViTFeatureExtractor",
            "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;
        let vit = Processor::from_hf_json(vit).expect("a sound file");
        assert_eq!(vit.resize, Resize::Exact(224, 224));
        assert_eq!((vit.filter, vit.crop, vit.mean), (Filter::Bilinear, None, [0.5; 3]));
        assert_eq!(vit.size(), Some((224, 224)));

        let dino = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "image_processor_type": "BitImageProcessor", "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}}"#;
        let dino = Processor::from_hf_json(dino).expect("a sound file");
        assert_eq!((dino.resize, dino.size()), (Resize::ShortestEdge(256), Some((224, 224))));

        let blip = r#"{"image_processor": {"image_processor_type": "BlipImageProcessorFast",
            "size": {"height": 384, "width": 512}, "do_normalize": false, "do_rescale": false}}"#;
        let blip = Processor::from_hf_json(blip).expect("a sound file");
        assert_eq!(blip.resize, Resize::Exact(512, 384));
        assert_eq!(
            (blip.rescale.to_bits(), blip.mean, blip.std),
            (1.0_f64.to_bits(), [0.0; 3], [1.0; 3])
        );
    }

    #[test]
    fn open_clip_and_timm_files() {
        let text = r#"{"model_cfg": {"vision_cfg": {"image_size": 224}},
            "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic", "resize_mode": "squash"}}"#;
        let squash = Processor::from_open_clip_json(text).expect("a sound file");
        assert_eq!((squash.resize, squash.crop), (Resize::Exact(224, 224), None));
        assert_eq!((squash.order, squash.mean), (Order::RgbLast, [0.5; 3]));
        let text = text.replace("squash", "longest");
        let longest = Processor::from_open_clip_json(&text).expect("a sound file");
        assert_eq!((longest.resize, longest.size()), (Resize::LongestEdge(224), Some((224, 224))));
        let plain = r#"{"model_cfg": {"vision_cfg": {"image_size": 224}}, "preprocess_cfg": {}}"#;
        let plain = Processor::from_open_clip_json(plain).expect("a sound file");
        assert_eq!(plain, Processor::openai(224));

        let timm = r#"{"pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.9,
            "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
        let timm = Processor::from_timm_json(timm).expect("a sound file");
        assert_eq!((timm.resize, timm.size()), (Resize::ShortestEdge(248), Some((224, 224))));
    }

    #[test]
    fn wrong_files_say_where() {
        let unknown =
            error(Processor::from_hf_json(r#"{"image_processor_type": "SamImageProcessor"}"#));
        assert!(unknown.contains("SamImageProcessor") && unknown.contains("Bit"), "{unknown}");
        let silent = r#"{"size": 224}"#;
        let missing = error(Processor::from_hf_json(silent));
        assert!(missing.contains("image_processor_type is missing"), "{missing}");
        let usual = Processor::from_hf_json_or(silent, "ViTImageProcessor").expect("a sound file");
        assert_eq!(usual.resize, Resize::Exact(224, 224));
        let unknown = r#"{"feature_extractor_type": "Sam"}"#;
        assert!(error(Processor::from_hf_json_or(unknown, "ViTImageProcessor")).contains("Sam"));
        let size = r#"{"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}"#;
        assert!(error(Processor::from_hf_json(size)).contains("size is {\"longest_edge\":9}"));
        let huge = r#"{"image_processor_type": "ViTImageProcessor", "size": 10000000}"#;
        assert!(error(Processor::from_hf_json(huge)).contains("1 to 8192"));
        let resample = r#"{"image_processor_type": "ViTImageProcessor", "resample": 1}"#;
        assert!(error(Processor::from_hf_json(resample)).contains("resample is 1"));
        assert!(error(Processor::from_open_clip_json("{}")).contains("image_size is missing"));
        assert!(error(Processor::from_timm_json("[")).contains("not valid JSON"));
    }
}
