//! Labels and prompt templates as they are given on the command line.

use crate::failure::Failure;
use clap::Args;
use ocelli_data::text::{ClassNames, Ensemble, Language, prompts, templates};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Of a label file: 16 MiB.
const MAX_FILE_BYTES: u64 = 16 << 20;
const CHINESE: &str = "{}的照片。";

/// What to look for in pictures.
#[derive(Args, Debug)]
pub(crate) struct LabelArgs {
    /// Labels with commas between them (，too); or imagenet or imagenet-zh for its 1,000 class names in
    /// English or Chinese
    #[arg(long, value_name = "A,B,C")]
    labels: Option<String>,
    /// A file with a label on each line; blank lines do not count
    #[arg(long, value_name = "FILE", conflicts_with = "labels", alias = "labels_file")]
    labels_file: Option<PathBuf>,
    /// Prompt with {} for the label; several are averaged. imagenet80, imagenet7 and imagenet-zh80
    /// are the published ensembles [default: "a photo of a {}.", for models trained here "{}"]
    #[arg(long, value_name = "TEXT")]
    template: Vec<String>,
}

impl LabelArgs {
    /// The labels, checked; none if none were asked for.
    pub(crate) fn labels(&self) -> Result<Option<Vec<String>>, Failure> {
        let labels: Vec<String> = match (&self.labels, &self.labels_file) {
            (Some(labels), _) => match labels.as_str() {
                // These are not checked: two classes of ImageNet are called "missile".
                "imagenet" => return Ok(Some(ClassNames::imagenet(Language::English))),
                "imagenet-zh" => return Ok(Some(ClassNames::imagenet(Language::Chinese))),
                list => of_list(list)?,
            },
            (None, Some(file)) => of_file(file, &read(file)?)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(labels))
    }

    /// The templates, checked; `usual` if none are given.
    pub(crate) fn templates(&self, usual: &str) -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        for template in &self.template {
            match template.as_str() {
                "imagenet80" => all.extend(templates(Ensemble::Imagenet80)),
                "imagenet7" => all.extend(templates(Ensemble::Imagenet7)),
                "imagenet-zh80" => all.extend(templates(Ensemble::ImagenetChinese80)),
                own => all.push(own.to_owned()),
            }
        }
        if all.is_empty() {
            let is_chinese = self.labels.as_deref() == Some("imagenet-zh");
            all.push(if is_chinese { CHINESE } else { usual }.to_owned());
        }
        prompts("", &all).map_err(|e| Failure::usage(e.to_string()))?;
        Ok(all)
    }

    /// Whether anything was asked for that only a model with a text tower can do.
    pub(crate) fn is_given(&self) -> bool {
        self.labels.is_some() || self.labels_file.is_some() || !self.template.is_empty()
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| Failure::model(format!("cannot read {name}: {e}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::input(format!(
            "{name} has more than the {MAX_FILE_BYTES} bytes of a label file; give one with a \
             label on each line"
        )));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::input(format!("{name} is not UTF-8 at byte {at}; save it as UTF-8 text"))
    })
}

/// Labels between commas, those of Chinese text too.
fn of_list(list: &str) -> Result<Vec<String>, Failure> {
    let labels: Vec<String> = list.split([',', '，']).map(|l| l.trim().to_owned()).collect();
    if labels.iter().all(String::is_empty) {
        return Err(Failure::usage("no labels: give at least one to classify by"));
    }
    let mut seen = HashSet::new();
    for (i, label) in labels.iter().enumerate() {
        let place = format!("label {} of --labels", i + 1);
        if label.is_empty() {
            return Err(Failure::usage(format!("{place} is empty; leave it out")));
        }
        if !seen.insert(label) {
            return Err(Failure::usage(format!("{place} repeats {label:?}; leave it out")));
        }
    }
    Ok(labels)
}

/// The lines of a file that are not blank. Editors of some systems begin a text with U+FEFF.
fn of_file(file: &Path, text: &str) -> Result<Vec<String>, Failure> {
    let name = file.display();
    let (mut labels, mut seen) = (Vec::new(), HashMap::new());
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let (label, line) = (line.trim(), i + 1);
        if label.is_empty() {
            continue;
        }
        if let Some(first) = seen.insert(label, line) {
            return Err(Failure::input(format!(
                "{name} line {line} repeats {label:?} of line {first}; leave it out"
            )));
        }
        labels.push(label.to_owned());
    }
    if labels.is_empty() {
        return Err(Failure::input(format!("{name} has no labels; write one on each line")));
    }
    Ok(labels)
}

/// `id2label` of a configuration, if there is a readable one.
pub(crate) fn class_names(config: &Path) -> BTreeMap<usize, String> {
    #[derive(Deserialize)]
    struct Config {
        id2label: BTreeMap<usize, String>,
    }
    let text = std::fs::read_to_string(config).unwrap_or_default();
    serde_json::from_str::<Config>(&text).map(|c| c.id2label).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    fn given(labels: Option<&str>, template: &[&str]) -> LabelArgs {
        LabelArgs {
            labels: labels.map(str::to_owned),
            labels_file: None,
            template: template.iter().map(|t| (*t).to_owned()).collect(),
        }
    }

    #[test]
    fn labels_are_cut_at_commas_and_checked() {
        for list in ["cat, big dog", "cat，big dog"] {
            assert_eq!(given(Some(list), &[]).labels().unwrap().unwrap(), ["cat", "big dog"]);
        }
        for wrong in ["", ",", "cat,", "cat,dog,cat"] {
            assert!(given(Some(wrong), &[]).labels().is_err(), "{wrong:?}");
        }
        for known in ["imagenet", "imagenet-zh"] {
            assert_eq!(given(Some(known), &[]).labels().unwrap().unwrap().len(), 1000);
        }
        assert!(given(None, &[]).labels().unwrap().is_none());
    }

    #[test]
    fn files_have_a_label_a_line() {
        let file = Path::new("labels.txt");
        let text = "\u{feff}cat\r\n\r\n big dog \n\n";
        assert_eq!(of_file(file, text).unwrap(), ["cat", "big dog"]);
        for wrong in ["", "\u{feff}\n \n", "cat\n\ndog\ncat"] {
            assert!(of_file(file, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn templates_are_named_or_written_out() {
        assert_eq!(given(None, &[]).templates("{}").unwrap(), ["{}"]);
        assert_eq!(given(Some("imagenet-zh"), &[]).templates("{}").unwrap(), [CHINESE]);
        assert_eq!(given(None, &["imagenet7", "a {}"]).templates("{}").unwrap().len(), 8);
        assert!(given(None, &["no place"]).templates("{}").is_err());
    }
}
