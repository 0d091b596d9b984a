//! The locked towers of a LiT: where they come from, and their features, each computed once.
//!
//! What a locked tower says about a picture or a text never changes, so it is kept in memory and a
//! step runs the projections alone. Pictures are seen as in use, without random changes.

use crate::config::{ModelConfig, TowersConfig};
use crate::texts::NamedFiles;
use crate::{Error, Result};
use ocelli_data::dataset::{Dataset, DatasetError, OnBroken};
use ocelli_data::image::{Limits, Processor, decode};
use ocelli_data::text::{BertTokenizer, TokenBatch, Truncate};
use ocelli_models::language::bert::{BertConfig, Texts};
use ocelli_models::systems::lit::{Lit, LitConfig, lock_towers};
use ocelli_models::vision::vit::{Head, VitConfig};
use ocelli_models::{Files, HeadCounts, Model};
use ocelli_nn::{Builder, Parameters};
use ocelli_tensor::Tensor;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Pictures or texts that go through a tower at once.
const AT_ONCE: usize = 32;

/// A LiT on the towers of a recipe.
#[derive(Debug)]
pub(crate) struct OnTowers {
    pub(crate) model: Lit,
    pub(crate) parameters: Parameters,
    /// Mean and standard deviation of the channels that the vision tower learned with.
    pub(crate) channels: ([f32; 3], [f32; 3]),
}

/// Opens the towers, puts new projections from `builder` on them and locks them.
pub(crate) fn on_towers(config: &ModelConfig, builder: &Builder) -> Result<OnTowers> {
    let missing = |key| Error::Unfit { key, problem: "is missing; a lit needs it".to_owned() };
    let towers = config.towers.as_ref().ok_or_else(|| missing("model.towers"))?;
    let other = |key, found: &Model, needed: &str| {
        let problem = format!("holds {}; give the folder of {needed}", found.kind());
        Err(Error::Unfit { key, problem })
    };
    let files = Files::find(&towers.vision, None)?;
    let processor = files.processor()?;
    let vision = files.open(HeadCounts::default())?;
    let Model::Vit(vit) = &vision.model else {
        return other("model.towers.vision", &vision.model, "a DINOv2 or another ViT");
    };
    let text = Files::find(&towers.text, None)?.open(HeadCounts::default())?;
    let Model::Bert(bert) = &text.model else {
        return other("model.towers.text", &text.model, "a BERT");
    };
    let usual = processor.size().map_or(vit.config().image_size.0, |(width, _)| width);
    let side = config.image_size.unwrap_or(usual);
    let sizes = sizes(config, vit.config(), bert.config(), side)?;
    if let Some(position) = vision.parameters.get("position") {
        position.replace(&vit.positions((side, side))?);
    }
    let model = Lit::new(&sizes, builder);
    let parameters = builder.clone().finish()?;
    lock_towers(&parameters, &vision.parameters, &text.parameters)?;
    Ok(OnTowers { model, parameters, channels: (processor.mean, processor.std) })
}

/// The same on towers that are not there yet, for a plan: they are counted as [`usual_towers`].
pub(crate) fn on_absent_towers(config: &ModelConfig) -> Result<OnTowers> {
    let (vision, text) = usual_towers();
    let side = config.image_size.unwrap_or(vision.image_size.0);
    let builder = Builder::zeros();
    let model = Lit::new(&sizes(config, &vision, &text, side)?, &builder);
    let published = Processor::openai(side);
    let parameters = builder.finish()?;
    Ok(OnTowers { model, parameters, channels: (published.mean, published.std) })
}

/// The sizes of DINOv2-S/14 (arXiv:2304.07193, Table 17) and of MiniLM-L6 (arXiv:2002.10957), on
/// which `recipes/clip/lit.toml` learns.
fn usual_towers() -> (VitConfig, BertConfig) {
    let missing = "is a published size";
    let vision = VitConfig {
        has_layer_scale: true,
        head: Head::None,
        ..VitConfig::variant("S/14").expect(missing)
    };
    let base = BertConfig::variant("base").expect(missing);
    (vision, BertConfig { width: 384, depth: 6, mlp_dim: 1536, ..base })
}

/// The sizes of a LiT on towers of these sizes, for pictures of `side` pixels.
fn sizes(
    config: &ModelConfig,
    vision: &VitConfig,
    text: &BertConfig,
    side: usize,
) -> Result<LitConfig> {
    let missing = |key| Error::Unfit { key, problem: "is missing; a lit needs it".to_owned() };
    let towers = config.towers.as_ref().ok_or_else(|| missing("model.towers"))?;
    let embed_dim = config.embed_dim.ok_or_else(|| missing("model.embed_dim"))?;
    if !vision.has_class_token {
        let problem = "has no class token; give the folder of a DINOv2".to_owned();
        return Err(Error::Unfit { key: "model.towers.vision", problem });
    }
    if side == 0 || !side.is_multiple_of(vision.patch_size) {
        let problem = format!("{side} is no multiple of the patch of {} pixels", vision.patch_size);
        return Err(Error::Unfit { key: "model.image_size", problem });
    }
    let depth = vision.depth;
    let vision = VitConfig { image_size: (side, side), ..vision.clone() };
    let TowersConfig { hidden_state, projection, .. } = *towers;
    LitConfig::on_towers(&vision, hidden_state, text, embed_dim, projection).ok_or_else(|| {
        let problem = format!("{hidden_state} is none; give 1 to {depth}");
        Error::Unfit { key: "model.towers.hidden_state", problem }
    })
}

/// What the locked text tower reads; every text is read once.
pub(crate) struct LockedTexts {
    tokenizer: BertTokenizer,
    context_length: usize,
    known: Mutex<HashMap<String, Box<[f32]>>>,
}

impl std::fmt::Debug for LockedTexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LockedTexts of {} ids", self.tokenizer.vocab_size())
    }
}

impl LockedTexts {
    /// The tokenizer of the text tower in `folder`, and its files that an exported model needs.
    pub(crate) fn open(folder: &Path, lit: &Lit) -> Result<(Self, NamedFiles)> {
        let found = Files::find(folder, None)?;
        let (tokenizer, context_length) = (found.bert_tokenizer()?, found.context_length()?);
        let (ids, rows) = (tokenizer.vocab_size(), lit.config().text.vocab);
        if rows < ids {
            let problem = format!(
                "its tokenizer has {ids} ids, its token table {rows} rows; use the files that \
                 belong together"
            );
            return Err(Error::Unfit { key: "model.towers.text", problem });
        }
        let mut files = Vec::new();
        for name in
            ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"]
        {
            let path = folder.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
                files.push((name, bytes));
            }
        }
        Ok((Self { tokenizer, context_length, known: Mutex::default() }, files))
    }

    /// Features of `texts`, `[texts, width]`; longer ones are cut.
    ///
    /// # Errors
    /// If an id of the tokenizer is not in the tower's table.
    pub(crate) fn features(&self, lit: &Lit, texts: &[String]) -> Result<Tensor> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Texts of one length go together, so that none is padded.
        let mut unknown: BTreeMap<usize, BTreeMap<&str, Vec<u32>>> = BTreeMap::new();
        for text in texts.iter().filter(|text| !known.contains_key(*text)) {
            let ids = self.tokenizer.encode(text, self.context_length, Truncate::Cut)?;
            unknown.entry(ids.len()).or_default().insert(text, ids);
        }
        for (tokens, of_length) in unknown {
            let of_length: Vec<(&str, Vec<u32>)> = of_length.into_iter().collect();
            for part in of_length.chunks(AT_ONCE) {
                let ids: Vec<u32> = part.iter().flat_map(|(_, ids)| ids).copied().collect();
                let attention_mask = vec![1; ids.len()];
                let batch = TokenBatch { ids, attention_mask, batch: part.len(), tokens };
                let features = lit.text_features(&Texts::from(&batch))?; // [part, width]
                let rows = features.values().chunks_exact(features.shape().last_axis());
                known.extend(
                    part.iter().zip(rows).map(|((text, _), row)| ((*text).to_owned(), row.into())),
                );
            }
        }
        let width = lit.config().text.width;
        let mut values = Vec::with_capacity(texts.len() * width);
        texts.iter().for_each(|text| values.extend_from_slice(&known[text]));
        Ok(Tensor::from_slice(&values, &[texts.len(), width])?)
    }
}

/// What the locked vision tower sees in the pictures of a dataset; every picture is seen once.
#[derive(Debug)]
pub(crate) struct LockedPictures {
    on_broken: OnBroken,
    /// By the number of the sample; nothing for a picture that cannot be read.
    known: Mutex<BTreeMap<usize, Option<Box<[f32]>>>>,
}

impl LockedPictures {
    pub(crate) fn new(on_broken: OnBroken) -> Self {
        Self { on_broken, known: Mutex::default() }
    }

    /// Looks at those of `indices` that are not known yet, and gives the places in it whose picture
    /// can be read, with their features `[places, 2 width]`. `told` hears how far it is.
    ///
    /// # Errors
    /// If a picture cannot be read, or more than may be skipped.
    pub(crate) fn features(
        &self,
        lit: &Lit,
        dataset: &Dataset,
        processor: &Processor,
        indices: &[usize],
        told: &mut dyn FnMut(&str),
    ) -> Result<(Vec<usize>, Tensor)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unknown: Vec<usize> =
            indices.iter().copied().filter(|index| !known.contains_key(index)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        for part in unknown.chunks(AT_ONCE) {
            let (mut readable, mut pixels) = (Vec::new(), Vec::new());
            for &index in part {
                match prepared(dataset, processor, index) {
                    Ok(picture) => {
                        readable.push(index);
                        pixels.extend(picture);
                    }
                    Err(error) => {
                        known.insert(index, None);
                        let broken = known.values().filter(|row| row.is_none()).count() as u64;
                        if !matches!(self.on_broken, OnBroken::Skip { limit } if broken <= limit) {
                            return Err(error.into());
                        }
                    }
                }
            }
            if !readable.is_empty() {
                let (img_h, img_w) = lit.config().vision.image_size;
                let pixels = Tensor::from_slice(&pixels, &[readable.len(), 3, img_h, img_w])?;
                let features = lit.image_features(&pixels)?; // [readable, 2 width]
                let rows = features.values().chunks_exact(features.shape().last_axis());
                known.extend(readable.into_iter().zip(rows).map(|(i, row)| (i, Some(row.into()))));
            }
            told(&format!("features of {} of {} pictures computed", known.len(), dataset.len()));
        }
        let (mut places, mut values) = (Vec::new(), Vec::new());
        for (place, index) in indices.iter().enumerate() {
            if let Some(row) = &known[index] {
                places.push(place);
                values.extend_from_slice(row);
            }
        }
        let features = Tensor::from_slice(&values, &[places.len(), lit.config().image_features()])?;
        Ok((places, features))
    }
}

/// A picture as the model sees it in use, `[3, img_h, img_w]`.
fn prepared(
    dataset: &Dataset,
    processor: &Processor,
    index: usize,
) -> std::result::Result<Vec<f32>, DatasetError> {
    let bytes = dataset.picture(index)?;
    let picture = decode(&bytes, &Limits::default());
    picture
        .and_then(|picture| processor.pixels(&picture))
        .map_err(|source| DatasetError::Picture { place: dataset.place(index), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use ocelli_models::language::bert::Bert;
    use ocelli_models::vision::vit::Vit;

    #[test]
    fn the_usual_towers_have_their_published_parameters() {
        let (vision, text) = usual_towers();
        let b = Builder::random(0);
        Bert::new(&text, &b);
        // 22,713,216 with the pooler, a layer of 384 x 384 and its bias.
        assert_eq!(b.finish().unwrap().elements(), 22_713_216 - 385 * 384);
        let b = Builder::random(0);
        Vit::new(&VitConfig { image_size: (518, 518), ..vision }, &b);
        assert_eq!(b.finish().unwrap().elements(), 22_056_576);
    }
}
