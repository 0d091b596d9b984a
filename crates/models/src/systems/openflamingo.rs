//! OpenFlamingo: the sizes of the released models.
//!
//! Awadalla et al. 2023, "OpenFlamingo", arXiv:2308.01390, Table 1.

use super::flamingo::{FlamingoConfig, LanguageConfig, Places, TowerConfig};
use crate::connector::gated_xattn::GatedConfig;
use crate::connector::perceiver::PerceiverConfig;
use crate::language::gpt_neox::GptNeoxConfig;
use crate::language::mpt::MptConfig;
use crate::systems::clip::{ClipConfig, VisionConfig};
use ocelli_tensor::Activation;

impl FlamingoConfig {
    /// A released OpenFlamingo (Table 1): `"3b"` on the first MPT, `"4b"` on
    /// RedPajama-INCITE or `"9b"` on MPT-7B. The two that follow instructions have the sizes of the others.
    pub fn released(name: &str) -> Option<Self> {
        let (text, every) = match name {
            "3b" => (LanguageConfig::MosaicGpt(MptConfig::variant("1b")?), 1),
            "4b" => (LanguageConfig::GptNeox(GptNeoxConfig::variant("redpajama-3b")?), 2),
            "9b" => (LanguageConfig::Mpt(MptConfig::variant("7b")?), 4),
            _ => return None,
        };
        let VisionConfig::Vit(tower) = ClipConfig::variant("ViT-L/14")?.vision else { return None };
        let (memory_width, width) = (tower.width, text.sizes().1);
        let (heads, head_dim, activation) = (8, 64, Activation::Gelu);
        Some(Self {
            vision: TowerConfig::Clip(tower, false),
            resampler: PerceiverConfig {
                width: memory_width,
                depth: 6,
                heads,
                head_dim,
                latents: 64,
                mlp_dim: 4 * memory_width,
                activation,
                frames: 0,
                media: 0,
            },
            gated: GatedConfig {
                width,
                memory_width,
                heads,
                head_dim,
                mlp_dim: 4 * width,
                activation,
            },
            places: Places { every, is_first: false },
            text,
            // Behind the 50,277 words of GPT-NeoX's tokenizer and what ends the text of a picture.
            image_token: 50_278,
            looks_back: false,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::*;
    use crate::systems::flamingo::Flamingo;
    use ocelli_nn::Builder;

    #[test]
    fn released_models_have_the_parameters_of_their_names() {
        // With how many layers look at pictures.
        for (name, parameters, layers) in
            [("3b", 2_558_509_104, 24), ("4b", 4_039_805_984, 16), ("9b", 8_131_299_344, 8)]
        {
            let b = Builder::zeros();
            let config = FlamingoConfig::released(name).unwrap();
            let looks = (0..config.text.sizes().0).filter(|block| config.places.has(*block));
            assert_eq!(looks.count(), layers, "{name}");
            let _model = Flamingo::new(&config, &b);
            assert_eq!(b.finish().unwrap().elements(), parameters, "{name}");
        }
        assert!(FlamingoConfig::released("80b").is_none());
    }
}
