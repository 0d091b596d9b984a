//! Reading a recipe, changing it by overrides, and checking what types cannot.

use super::{Family, Frozen, OptimName, Stage, TokenizerConfig, TrainConfig};
use crate::{Error, Result};
use ocelli_data::dataset::AugmentConfig;
use std::path::Path;
use toml::{Table, Value};

/// Environment variables of this prefix override keys: `OCELLI__OPTIM__LR`.
const ENVIRONMENT: &str = "OCELLI__";

impl TrainConfig {
    /// Reads a recipe. Environment variables `OCELLI__SECTION__KEY` change it, and after them
    /// `overrides` of the form `section.key=value`; `data.sources.0.path=…` reaches into a list.
    ///
    /// # Errors
    /// If the file cannot be read, is no TOML, or has unknown keys or values out of range; the
    /// message names the key and, where one is near, the right one.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        let name = path.display().to_string();
        let from_environment = std::env::vars().filter_map(|(key, value)| {
            let key = key.strip_prefix(ENVIRONMENT)?.to_ascii_lowercase().replace("__", ".");
            Some(format!("{key}={value}"))
        });
        let mut all: Vec<String> = from_environment.collect();
        all.sort_unstable();
        all.extend_from_slice(overrides);
        Self::parse(&text, &name, &all)
    }

    /// The same from text; `name` is in messages.
    ///
    /// # Errors
    /// As for [`TrainConfig::load`].
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self> {
        let wrong = |error: &toml::de::Error| Error::Recipe {
            file: name.to_owned(),
            problem: with_hint(error.to_string().trim_end()),
        };
        // Once from the text, so that messages show the line; once more if something changes.
        let config: Self = if overrides.is_empty() {
            toml::from_str(text).map_err(|e| wrong(&e))?
        } else {
            let mut table: Table = toml::from_str(text).map_err(|e| wrong(&e))?;
            for change in overrides {
                apply(&mut table, change)?;
            }
            table.try_into().map_err(|e| wrong(&e))?
        };
        config.check(name)?;
        Ok(config)
    }

    /// The recipe as TOML, defaults written out.
    ///
    /// # Errors
    /// Never for a recipe that was read.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Recipe {
            file: "config.resolved.toml".to_owned(),
            problem: e.to_string(),
        })
    }

    fn check(&self, file: &str) -> Result<()> {
        let wrong = |problem: String| Err(Error::Recipe { file: file.to_owned(), problem });
        let (model, train, optim) = (&self.model, &self.train, &self.optim);
        match (model.family, train.stage) {
            (Family::Clip | Family::Lit, Stage::Contrastive) => {}
            (family, Stage::Supervised) if family.is_classifier() => {}
            (family, stage) => {
                return wrong(format!(
                    "train.stage {stage:?} does not train model.family {family:?}; use vit, \
                     hybrid and local_vit with supervised, clip with contrastive, lit with \
                     contrastive"
                ));
            }
        }
        if train.epochs.is_some() == train.steps.is_some() {
            return wrong("[train] needs one of epochs and steps".to_owned());
        }
        if train.epochs.is_some_and(|e| !(e > 0.0 && e.is_finite())) {
            return wrong("train.epochs must be above 0".to_owned());
        }
        let global = train.global_batch_size;
        let micro = train.micro_batch_size.unwrap_or(global);
        if global == 0 || micro == 0 || micro > global {
            return wrong(format!(
                "train.micro_batch_size is {micro} and train.global_batch_size is {global}; \
                 both must be above 0 and the first at most the second"
            ));
        }
        if self.data.sources.is_empty() {
            return wrong("data.sources is empty; add a [[data.sources]] with a path".to_owned());
        }
        let positive = [
            ("optim.lr", optim.lr),
            ("optim.eps", optim.eps),
            ("optim.max_grad_norm", optim.max_grad_norm.unwrap_or(1.0)),
        ];
        if let Some((key, value)) = positive.iter().find(|(_, v)| !(*v > 0.0 && v.is_finite())) {
            return wrong(format!("{key} is {value}; it must be above 0"));
        }
        if model.std.is_some_and(|std| !std.iter().all(|s| *s > 0.0)) {
            return wrong("model.std must be above 0".to_owned());
        }
        let below_one = [
            ("optim.betas[0]", optim.betas[0]),
            ("optim.betas[1]", optim.betas[1]),
            ("optim.momentum", optim.momentum),
            ("train.label_smoothing", f64::from(train.label_smoothing)),
            ("train.dropout", f64::from(train.dropout)),
            ("schedule.warmup_ratio", self.schedule.warmup_ratio),
        ];
        if let Some((key, value)) = below_one.iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return wrong(format!("{key} is {value}; it must be from 0 to below 1"));
        }
        if optim.name == OptimName::Sgd && optim.weight_decay != 0.0 {
            return wrong("optim.weight_decay needs optim.name = \"adamw\"".to_owned());
        }
        if !(0.0..=100.0).contains(&train.mixup) {
            return wrong(format!("train.mixup is {}; it must be from 0 to 100", train.mixup));
        }
        if train.dropout != 0.0 && !model.family.is_classifier() {
            return wrong("train.dropout is for classifiers; remove it".to_owned());
        }
        if self.checkpoint.every_steps == 0 || self.log.every_steps == 0 {
            return wrong("checkpoint.every_steps and log.every_steps must be above 0".to_owned());
        }
        match (model.family, self.freeze.text) {
            (Family::Clip | Family::Lit, None) => {
                return wrong(
                    "[freeze] must name text as well, such as text = \"none\"".to_owned(),
                );
            }
            (family, Some(_)) if family.is_classifier() => {
                return wrong("freeze.text: the model has no text tower; remove it".to_owned());
            }
            _ => {}
        }
        if model.family.is_classifier() && (model.text.is_some() || model.tokenizer.is_some()) {
            return wrong("model.text and model.tokenizer are for family = \"clip\"".to_owned());
        }
        if model.backbone.is_some() && model.family != Family::Hybrid {
            return wrong("model.backbone is for family = \"hybrid\"; remove it".to_owned());
        }
        if model.neighbourhood.is_some() && model.family != Family::LocalVit {
            return wrong(
                "model.neighbourhood is for family = \"local_vit\"; remove it".to_owned(),
            );
        }
        let sizes = model.vision.is_some() || model.resnet.is_some() || model.towers.is_some();
        if model.variant.is_none() && model.from.is_none() && !sizes {
            return wrong("[model] needs a variant, a checkpoint in from, or sizes".to_owned());
        }
        if model.from.is_some()
            && matches!(model.tokenizer, Some(TokenizerConfig::TrainVocabSize(_)))
        {
            return wrong("model.from brings its vocabulary; remove model.tokenizer".to_owned());
        }
        if let Err(problem) = self.check_lit() {
            return wrong(problem);
        }
        if let Some(eval) = &self.eval
            && (eval.every_steps == 0 || eval.batch_size == 0)
        {
            return wrong("eval.every_steps and eval.batch_size must be above 0".to_owned());
        }
        if let Some(best) = &self.checkpoint.keep_best
            && !(best.ends_with(":max") || best.ends_with(":min"))
        {
            return wrong(format!(
                "checkpoint.keep_best is {best:?}; write it as \"val_top1:max\""
            ));
        }
        Ok(())
    }

    /// What holds for a LiT alone, and that nothing else has its section.
    fn check_lit(&self) -> std::result::Result<(), String> {
        let (model, data) = (&self.model, &self.data);
        if model.family != Family::Lit {
            return match &model.towers {
                Some(_) => Err("model.towers is for family = \"lit\"".to_owned()),
                None => Ok(()),
            };
        }
        let others = [
            model.from.is_some(),
            model.variant.is_some(),
            model.vision.is_some(),
            model.resnet.is_some(),
            model.text.is_some(),
            model.tokenizer.is_some(),
        ];
        if model.towers.is_none() || others.contains(&true) {
            return Err(
                "a lit has all it is made of in model.towers; remove model.from, variant, \
                        vision, resnet, text and tokenizer"
                    .to_owned(),
            );
        }
        if self.freeze.vision != Frozen::All || self.freeze.text != Some(Frozen::All) {
            return Err(
                "a lit locks its towers; set freeze.vision and freeze.text to \"all\"".to_owned()
            );
        }
        if data.augment != AugmentConfig::default() || data.cache.is_some() {
            return Err("a lit looks at each picture once, as it is; remove data.augment and \
                        data.cache"
                .to_owned());
        }
        Ok(())
    }
}

/// Sets one key of `table`.
fn apply(table: &mut Table, change: &str) -> Result<()> {
    let wrong =
        |problem: &str| Error::Override { change: change.to_owned(), problem: problem.to_owned() };
    let (path, text) = change.split_once('=').ok_or_else(|| wrong("write it as key.sub=value"))?;
    let value = toml::from_str::<Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut parts: Vec<&str> = path.trim().split('.').collect();
    let last = parts.pop().filter(|p| !p.is_empty()).ok_or_else(|| wrong("the key is empty"))?;
    let mut root = Value::Table(std::mem::take(table));
    let mut place = &mut root;
    for part in parts {
        place = match place {
            Value::Table(t) => t.entry(part).or_insert_with(|| Value::Table(Table::new())),
            Value::Array(list) => part
                .parse::<usize>()
                .ok()
                .and_then(|i| list.get_mut(i))
                .ok_or_else(|| wrong("the list has no such entry"))?,
            _ => return Err(wrong("a part of the key is no section")),
        };
    }
    match place {
        Value::Table(t) => {
            t.insert(last.to_owned(), value);
        }
        Value::Array(list) => {
            let entry = last.parse::<usize>().ok().and_then(|i| list.get_mut(i));
            *entry.ok_or_else(|| wrong("the list has no such entry"))? = value;
        }
        _ => return Err(wrong("a part of the key is no section")),
    }
    if let Value::Table(changed) = root {
        *table = changed;
    }
    Ok(())
}

/// Adds the nearest known key to a message about an unknown one.
fn with_hint(message: &str) -> String {
    let Some(at) = message.find("unknown field `").or_else(|| message.find("unknown variant `"))
    else {
        return message.to_owned();
    };
    let mut quoted = message[at..].split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next() else { return message.to_owned() };
    let nearest = quoted
        .map(|known| (strsim::normalized_damerau_levenshtein(unknown, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, known)) if similarity > 0.5 => {
            format!("{message}\ndid you mean `{known}`?")
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use crate::config::ScheduleName;

    const RECIPE: &str = r#"
        [model]
        family = "vit"
        image_size = 28
        vision = { patch_size = 7, width = 64, depth = 2, heads = 2 }
        [[data.sources]]
        path = "data/mnist/train"
        [train]
        stage = "supervised"
        epochs = 1
        global_batch_size = 32
        [optim]
        name = "adamw"
        lr = 1e-3
        [schedule]
        name = "cosine"
        [freeze]
        vision = "none"
    "#;

    const LIT: &str = r#"
        [model]
        family = "lit"
        embed_dim = 8
        towers = { vision = "dinov2", hidden_state = 9, text = "minilm", projection = { mlp = 16 } }
        [[data.sources]]
        path = "data/drawings/train-{0000..0004}.tar"
        [train]
        stage = "contrastive"
        epochs = 1
        global_batch_size = 32
        [optim]
        name = "adamw"
        lr = 1e-3
        [schedule]
        name = "cosine"
        [freeze]
        vision = "all"
        text = "all"
    "#;

    #[test]
    fn a_lit_locks_its_towers_and_leaves_pictures_alone() {
        let parse = |change: &str| TrainConfig::parse(LIT, "lit.toml", &[change.to_owned()]);
        parse("model.towers.projection=linear").unwrap();
        for (change, expected) in [
            ("freeze.vision=none", "lit locks its towers"),
            ("freeze.text=none", "lit locks its towers"),
            ("data.augment.flip=0.5", "remove data.augment"),
            ("data.cache={side=80}", "remove data.augment and data.cache"),
            ("model.from=runs/x", "all it is made of in model.towers"),
            ("model.family=clip", "model.towers is for family = \"lit\""),
            ("train.stage=supervised", "lit with contrastive"),
        ] {
            let message = parse(change).unwrap_err().to_string();
            assert!(message.contains(expected), "{change}: {message}");
        }
    }

    fn parse(overrides: &[&str]) -> Result<TrainConfig> {
        let overrides: Vec<String> = overrides.iter().map(|&o| o.to_owned()).collect();
        TrainConfig::parse(RECIPE, "test.toml", &overrides)
    }

    #[test]
    fn overrides_reach_every_key() {
        let config = parse(&[
            "optim.lr=3e-4",
            "schedule.name=linear",
            "data.sources.0.path=elsewhere",
            "checkpoint.keep_last=7",
            "freeze.vision={except_last = 2}",
        ])
        .unwrap();
        assert!((config.optim.lr - 3e-4).abs() < 1e-12);
        assert_eq!(config.schedule.name, ScheduleName::Linear);
        assert_eq!(config.data.sources[0].path, "elsewhere");
        assert_eq!(config.checkpoint.keep_last, 7);
        assert_eq!(config.freeze.vision, Frozen::ExceptLast(2));
    }

    #[test]
    fn the_resolved_recipe_reads_back() {
        let config = parse(&[]).unwrap();
        let again = TrainConfig::parse(&config.to_toml().unwrap(), "resolved", &[]).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn mistakes_are_named() {
        for (change, expected) in [
            ("optim.wieght_decay=0.1", "did you mean `weight_decay`?"),
            ("optim.name=adamv", "did you mean `adamw`?"),
            ("optim.lr=0", "optim.lr is 0"),
            ("train.steps=5", "one of epochs and steps"),
            ("train.micro_batch_size=64", "micro_batch_size is 64"),
            ("train.precision=f16", "unknown variant `f16`"),
            ("freeze.text=none", "no text tower"),
            ("train.stage=contrastive", "clip with contrastive"),
            ("checkpoint.keep_best=top1", "val_top1:max"),
            ("data.sources.3.path=x", "no such entry"),
            ("optim.lr.x=1", "no section"),
            ("nonsense", "key.sub=value"),
        ] {
            let message = parse(&[change]).unwrap_err().to_string();
            assert!(message.contains(expected), "{change}: {message}");
        }
    }
}
