//! Recall of image-text retrieval (Karpathy and Fei-Fei 2015, arXiv:1412.2306, §4.1): the share of
//! queries that find a match among the first k answers.

use crate::{Error, Result, rank_of};

/// The cut-offs that papers report.
const CUTOFFS: [usize; 3] = [1, 5, 10];

/// Shares in [0, 1] of queries with a match among the first 1, 5 and 10 answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recall {
    /// A picture finds one of its texts.
    pub image_to_text: [f64; 3],
    /// A text finds its picture.
    pub text_to_image: [f64; 3],
}

/// Recall over `scores` `[images, texts]`, where text `t` belongs to image `image_of_text[t]`. A
/// picture with several texts counts by the best of them; one without any is left out.
///
/// # Errors
/// [`Error::Length`] if the scores are not images times texts or a text has no such image.
pub fn recall_at(scores: &[f32], images: usize, image_of_text: &[usize]) -> Result<Recall> {
    let texts = image_of_text.len();
    if scores.len() != images * texts {
        let (expected, got) = (images * texts, scores.len());
        return Err(Error::Length { metric: "recall", expected, got });
    }
    if let Some(image) = image_of_text.iter().find(|i| **i >= images) {
        return Err(Error::Length { metric: "recall", expected: images, got: image + 1 });
    }
    let mut own = vec![Vec::new(); images];
    for (text, image) in image_of_text.iter().enumerate() {
        own[*image].push(text);
    }
    let best = |(image, own): (usize, &Vec<usize>)| {
        let row = &scores[image * texts..][..texts];
        own.iter().map(|text| rank_of(*text, row)).min()
    };
    let image_ranks: Vec<usize> = own.iter().enumerate().filter_map(best).collect();
    let mut column = vec![0.0; images];
    let mut text_ranks = Vec::with_capacity(texts);
    for (text, image) in image_of_text.iter().enumerate() {
        for (i, v) in column.iter_mut().enumerate() {
            *v = scores[i * texts + text];
        }
        text_ranks.push(rank_of(*image, &column));
    }
    Ok(Recall { image_to_text: shares(&image_ranks), text_to_image: shares(&text_ranks) })
}

fn shares(ranks: &[usize]) -> [f64; 3] {
    CUTOFFS.map(|k| ranks.iter().filter(|r| **r < k).count() as f64 / ranks.len().max(1) as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)] // A failed test is to panic; the shares are exact.
mod tests {
    use super::*;

    #[test]
    fn the_best_text_of_a_picture_counts() {
        // Picture 0 has texts 0 and 1, picture 1 has text 2.
        let scores = [0.1, 0.9, 0.5, 0.3, 0.95, 0.2];
        let recall = recall_at(&scores, 2, &[0, 0, 1]).unwrap();
        // Picture 0 finds text 1 first; picture 1 ranks its text last of three.
        assert_eq!(recall.image_to_text, [0.5, 1.0, 1.0]);
        // Each text prefers the other picture.
        assert_eq!(recall.text_to_image, [0.0, 1.0, 1.0]);
    }

    #[test]
    fn scores_that_do_not_fit_are_refused() {
        assert!(matches!(recall_at(&[0.0; 5], 2, &[0, 1]), Err(Error::Length { .. })));
        assert!(matches!(recall_at(&[0.0; 4], 2, &[0, 2]), Err(Error::Length { .. })));
        assert_eq!(recall_at(&[], 0, &[]).unwrap(), Recall::default());
    }
}
