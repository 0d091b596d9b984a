//! Class names and prompt templates for zero-shot classification (Radford et al. 2021, section
//! 3.1.4). `assets/text/NOTICE.md` tells where the lists come from.

use super::error::{Result, TextError};

/// Where a template takes the label.
const PLACEHOLDER: &str = "{}";

/// Languages of the built-in class names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// English.
    English,
    /// Simplified Chinese.
    Chinese,
}

/// Built-in sets of prompt templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensemble {
    /// The 80 English templates of CLIP for ImageNet.
    Imagenet80,
    /// The seven of them that do nearly as well.
    Imagenet7,
    /// 80 Chinese templates, translations of the English ones.
    ImagenetChinese80,
}

/// Lists of class names.
pub struct ClassNames;

impl ClassNames {
    /// The names of the 1,000 ImageNet classes, in the order of the labels.
    ///
    /// ```
    /// use ocelli_data::text::{ClassNames, Language};
    /// assert_eq!(ClassNames::imagenet(Language::English)[2], "great white shark");
    /// assert_eq!(ClassNames::imagenet(Language::Chinese)[2], "大白鲨");
    /// ```
    pub fn imagenet(language: Language) -> Vec<String> {
        lines(match language {
            Language::English => include_str!("../../assets/text/imagenet_classes_en.txt"),
            Language::Chinese => include_str!("../../assets/text/imagenet_classes_zh.txt"),
        })
    }
}

/// The templates of an ensemble, each with `{}` for the label.
pub fn templates(ensemble: Ensemble) -> Vec<String> {
    lines(match ensemble {
        Ensemble::Imagenet80 => include_str!("../../assets/text/imagenet_templates_80_en.txt"),
        Ensemble::Imagenet7 => include_str!("../../assets/text/imagenet_templates_7_en.txt"),
        Ensemble::ImagenetChinese80 => {
            include_str!("../../assets/text/imagenet_templates_80_zh.txt")
        }
    })
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(String::from).collect()
}

/// The prompts of one label: every template with the label in place of `{}`.
///
/// # Errors
///
/// [`TextError::NoPlaceholder`] if a template has no `{}`.
///
/// ```
/// use ocelli_data::text::prompts;
/// let prompts = prompts("cat", &["a photo of a {}.".into(), "art of the {}.".into()])?;
/// assert_eq!(prompts, ["a photo of a cat.", "art of the cat."]);
/// # Ok::<(), ocelli_data::text::TextError>(())
/// ```
pub fn prompts(label: &str, templates: &[String]) -> Result<Vec<String>> {
    let fill = |template: &String| {
        if template.contains(PLACEHOLDER) {
            Ok(template.replace(PLACEHOLDER, label))
        } else {
            Err(TextError::NoPlaceholder { template: template.clone() })
        }
    };
    templates.iter().map(fill).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn lists_are_whole() {
        for language in [Language::English, Language::Chinese] {
            let names = ClassNames::imagenet(language);
            assert_eq!(names.len(), 1000);
            assert!(names.iter().all(|name| !name.trim().is_empty()));
        }
        let counts = [
            (Ensemble::Imagenet80, 80),
            (Ensemble::Imagenet7, 7),
            (Ensemble::ImagenetChinese80, 80),
        ];
        for (ensemble, count) in counts {
            let templates = templates(ensemble);
            assert_eq!(templates.len(), count);
            assert_eq!(prompts("x", &templates).unwrap().len(), count);
        }
    }

    #[test]
    fn a_template_without_placeholder_is_refused() {
        let refused = prompts("cat", &["a photo of a cat".into()]);
        assert!(matches!(refused, Err(TextError::NoPlaceholder { .. })));
    }
}
