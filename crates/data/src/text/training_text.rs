//! Training texts: which tokens of a conversation a model learns to write.
//!
//! LLaVA finds them by encoding each turn again and counting, which fails with tokenizers that treat
//! the beginning of a text in another way (Liu et al. 2023, arXiv:2304.08485, §4.2, Table 2). Here
//! every token knows where it begins in the text, and the text knows what is learned.

use super::conversation::{IMAGE_MARK, Template, Turn};
use super::error::Result;
use super::tokenizer::Tokenizer;

/// A token of a training text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingToken {
    /// The id, or nothing where a picture stands.
    pub id: Option<u32>,
    /// Whether a model learns to write it: answers, and what ends them.
    pub is_learned: bool,
}

/// What did not fit into the context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Pictures.
    pub images: usize,
    /// Tokens that would have been learned.
    pub learned: usize,
}

impl Template {
    /// The tokens of a conversation to train on; every turn should have an answer. Text between
    /// pictures is encoded by itself, and the token that begins a text comes once, as in LLaVA.
    ///
    /// # Errors
    ///
    /// [`TextError::TokenElsewhere`](super::TextError::TokenElsewhere) for a tokenizer that changes
    /// texts.
    pub fn training_tokens(
        &self,
        turns: &[Turn],
        tokenizer: &Tokenizer,
    ) -> Result<Vec<TrainingToken>> {
        let stretches = self.training_stretches(turns);
        let text: String = stretches.iter().map(|stretch| &stretch.text[..]).collect();
        // Where a stretch ends, and whether it is learned, in the order of the text.
        let mut ends = stretches.iter().scan(0, |end, stretch| {
            *end += stretch.text.len();
            Some((*end, stretch.is_learned))
        });
        let mut stretch = ends.next().unwrap_or_default();
        let mut tokens = Vec::new();
        let mut begins = 0;
        for (i, words) in text.split(IMAGE_MARK).enumerate() {
            if i > 0 {
                tokens.push(TrainingToken { id: None, is_learned: false });
                begins += IMAGE_MARK.len();
            }
            for (at, (id, start)) in
                tokenizer.encode_with_starts(words, i == 0)?.into_iter().enumerate()
            {
                let start = begins + start;
                while start >= stretch.0
                    && let Some(next) = ends.next()
                {
                    stretch = next;
                }
                // What stands before every text is given.
                let is_front = i == 0 && at == 0 && tokenizer.named().start == Some(id);
                tokens.push(TrainingToken { id: Some(id), is_learned: stretch.1 && !is_front });
            }
            begins += words.len();
        }
        Ok(tokens)
    }
}

/// Cuts a training text to `max_tokens`, where a picture is `image_tokens` of them and is not taken
/// apart.
pub fn fit(tokens: &mut Vec<TrainingToken>, max_tokens: usize, image_tokens: usize) -> Lost {
    let mut length = 0usize;
    let fits = tokens.iter().take_while(|token| {
        length = length.saturating_add(if token.id.is_some() { 1 } else { image_tokens });
        length <= max_tokens
    });
    let cut = fits.count();
    let lost = tokens.drain(cut..);
    lost.fold(Lost::default(), |lost, token| Lost {
        images: lost.images + usize::from(token.id.is_none()),
        learned: lost.learned + usize::from(token.is_learned),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::path::Path;

    fn read(name: &str) -> Value {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        serde_json::from_slice(&std::fs::read(root.join(name)).unwrap()).unwrap()
    }

    /// The tokenizer of the rows, by the old or the new rule for spaces behind special tokens.
    fn tokenizer(is_legacy: bool) -> Tokenizer {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        let folder = tempfile::tempdir().unwrap();
        for name in ["tokenizer.model", "tokenizer_config.json"] {
            let text = std::fs::read(root.join("text/tokenizers/llama_tiny").join(name)).unwrap();
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let config = folder.path().join("tokenizer_config.json");
        let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        fields["legacy"] = is_legacy.into();
        std::fs::write(&config, fields.to_string()).unwrap();
        Tokenizer::from_dir(folder.path()).unwrap()
    }

    /// A conversation of a data set. An answer without a question is left out, as LLaVA does.
    fn turns(template: &Template, messages: &Value) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        for message in messages.as_array().unwrap() {
            let text = message["value"].as_str().unwrap();
            if message["from"] == "human" {
                turns.push(Turn { user: template.pictures_first(text), answer: None });
            } else if let Some(turn) = turns.last_mut() {
                turn.answer = Some(text.to_owned());
            }
        }
        turns
    }

    /// Ids and labels that the original training code of LLaVA makes of conversations
    /// (testdata/golden/llava/templates).
    #[test]
    fn ids_and_labels_are_those_of_the_reference() {
        let (sources, rows) = (
            read("golden/llava/templates/sources.json"),
            read("golden/llava/templates/train_targets.json"),
        );
        let (mut learned, mut given_up, mut kept_answers) = (0, 0, 0);
        for row in rows.as_array().unwrap() {
            let name = row["template"].as_str().unwrap();
            let source = row["source"].as_str().unwrap();
            if source == "gpt_first" && name.ends_with("v0") {
                // Only there the reference keeps an answer that nobody asked for.
                kept_answers += 1;
                continue;
            }
            let template = Template::named(name).unwrap();
            let tokenizer = tokenizer(row["legacy_tokenizer"].as_bool().unwrap());
            let turns = turns(template, &sources[source]);
            let tokens = template.training_tokens(&turns, &tokenizer).unwrap();
            let id = |token: &TrainingToken| token.id.map_or(-200, i64::from);
            let ids: Vec<i64> = tokens.iter().map(id).collect();
            let values =
                |field: &str| -> Vec<i64> { serde_json::from_value(row[field].clone()).unwrap() };
            assert_eq!(ids, values("input_ids"), "{name}, {source}");
            let label = |token: TrainingToken| if token.is_learned { id(&token) } else { -100 };
            let labels: Vec<i64> = tokens.into_iter().map(label).collect();
            if row["warned_mismatch"] == true {
                // The reference loses count and learns nothing; here the answers are found.
                let wanted = rows.as_array().unwrap().iter().find(|other| {
                    other["legacy_tokenizer"] == true
                        && (&other["template"], &other["source"])
                            == (&row["template"], &row["source"])
                });
                let wanted: Vec<i64> =
                    serde_json::from_value(wanted.unwrap()["labels"].clone()).unwrap();
                let answers = |labels: &[i64]| -> Vec<i64> {
                    labels.iter().copied().filter(|label| *label != -100).collect()
                };
                assert_eq!(answers(&labels), answers(&wanted), "{name}, {source}");
                given_up += 1;
                continue;
            }
            assert_eq!(labels, values("labels"), "{name}, {source}");
            learned += 1;
        }
        assert_eq!((learned, given_up, kept_answers), (44, 4, 4));
    }

    /// Templates without rows of the reference: what is learned is each answer with its end.
    #[test]
    fn answers_and_their_ends_are_learned_in_every_template() {
        let tokenizer = tokenizer(true);
        let turn = |user: &str, answer: &str| Turn {
            user: user.to_owned(),
            answer: Some(answer.to_owned()),
        };
        for name in Template::names() {
            let template = Template::named(name).unwrap();
            let turns = [turn("<image>\nWhat is it?", "A cat."), turn("Why?", "It has 4 paws.")];
            let tokens = template.training_tokens(&turns, &tokenizer).unwrap();
            let of = |wanted: bool| -> Vec<u32> {
                tokens.iter().filter(|t| t.is_learned == wanted).filter_map(|t| t.id).collect()
            };
            let (learned, given) =
                (tokenizer.decode(&of(true), false), tokenizer.decode(&of(false), false));
            for answer in ["A cat.", "It has 4 paws."] {
                assert!(learned.contains(answer), "{name}: {learned:?}");
                assert!(!given.contains(answer), "{name}: {given:?}");
            }
            for question in ["What is it?", "Why?"] {
                assert!(!learned.contains(question), "{name}: {learned:?}");
            }
            // Of a template in which nothing stands behind an answer, it is the next message.
            let is_next =
                |stop: &&str| ["[INST]", "Human:", "问："].iter().any(|m| stop.contains(m));
            let end = template.stops().next().filter(|stop| !is_next(stop));
            assert!(learned.contains(end.unwrap_or_default()), "{name}: {learned:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_and_counted() {
        let token = |id, is_learned| TrainingToken { id, is_learned };
        let whole = [
            token(Some(1), false),
            token(None, false),
            token(Some(7), false),
            token(Some(8), true),
            token(Some(2), true),
        ];
        // With 4 tokens of the picture there are 8.
        for (most, kept, lost) in [
            (8, 5, Lost::default()),
            (7, 4, Lost { images: 0, learned: 1 }),
            (5, 2, Lost { images: 0, learned: 2 }),
            (4, 1, Lost { images: 1, learned: 2 }),
            (0, 0, Lost { images: 1, learned: 2 }),
        ] {
            let mut tokens = whole.to_vec();
            assert_eq!(fit(&mut tokens, most, 4), lost);
            assert_eq!(tokens, whole[..kept]);
        }
    }

    #[test]
    fn a_tokenizer_that_changes_texts_is_refused() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/text");
        let bert = Tokenizer::from_dir(&root.join("bert")).unwrap();
        let turns = [Turn { user: "Größe?".into(), answer: Some("ÉTÉ".into()) }];
        let template = Template::named("v1").unwrap();
        let found = template.training_tokens(&turns, &bert);
        assert!(matches!(found, Err(super::super::TextError::TokenElsewhere { .. })));
    }
}
