//! Boxes in answers: where in a picture the things are that a model speaks of.
//!
//! Chen et al. 2023, "MiniGPT-v2", arXiv:2310.09478, §2.2, writes `<p>a fox</p> {<12><30><55><98>}`.
//! Others say the same with other marks and other units, so a notation is a table.

/// How a model writes boxes.
///
/// ```
/// use ocelli_data::text::BoxNotation;
/// let found = BoxNotation::MINIGPT_V2.read("<p>a fox</p> {<10><20><60><100>}");
/// let fox = found[0].as_ref().expect("it is well formed");
/// assert_eq!(fox.label.as_deref(), Some("a fox"));
/// assert_eq!(fox.corners, [0.1, 0.2, 0.6, 1.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoxNotation {
    /// The coordinate of the right and of the lower edge.
    pub units: u32,
    /// What stands before and behind a label.
    pub label: [&'static str; 2],
    /// What stands before, between and behind left, top, right and bottom.
    pub marks: [&'static str; 5],
    /// What stands between boxes of one label.
    pub joint: &'static str,
    /// The largest coordinate that is asked about.
    pub largest: u32,
}

/// A box of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TextBox {
    /// What the answer says is there; none if the box stands alone.
    pub label: Option<String>,
    /// Left, top, right and bottom as shares, in [0, 1], of what the model saw.
    pub corners: [f64; 4],
}

/// Why something that begins like a box is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoxError {
    /// The marks or numbers are others.
    #[error("`{written}` is no box: expected {form}; ask again in other words")]
    Malformed {
        /// As the answer has it.
        written: String,
        /// What was expected.
        form: String,
    },
    /// The text ends inside of it.
    #[error("the answer ends inside of the box `{written}`; allow more tokens")]
    Unfinished {
        /// As the answer has it.
        written: String,
    },
    /// Its right edge is left of its left one, or its lower one above its upper one.
    #[error("the box `{written}` ends before it begins; ask again in other words")]
    Inverted {
        /// As the answer has it.
        written: String,
    },
    /// A coordinate is larger than there are.
    #[error("the box `{written}` lies outside of 0 to {units}; ask again in other words")]
    Outside {
        /// As the answer has it.
        written: String,
        /// The largest coordinate.
        units: u32,
    },
}

/// Characters of a malformed box that a message repeats.
const SHOWN: usize = 40;

impl BoxNotation {
    /// `<p>label</p> {<left><top><right><bottom>}` in 0..100, `<delim>` between boxes of a label.
    pub const MINIGPT_V2: Self = Self {
        units: 100,
        label: ["<p>", "</p>"],
        marks: ["{<", "><", "><", "><", ">}"],
        joint: "<delim>",
        largest: 100,
    };

    /// `<ref>label</ref><box>(left,top),(right,bottom)</box>` in 0..1000, as Qwen-VL writes (Bai et al.
    /// 2023, arXiv:2308.12966, §3.2).
    pub const QWEN_VL: Self = Self {
        units: 1000,
        label: ["<ref>", "</ref>"],
        marks: ["<box>(", ",", "),(", ",", ")</box>"],
        joint: "",
        largest: 999,
    };

    /// A box as it stands in a question, without a label. Coordinates are rounded down, as the models
    /// were taught.
    pub fn write(&self, text_box: &TextBox) -> String {
        let unit = |share: f64| ((share * f64::from(self.units)) as u32).min(self.largest);
        let [m0, m1, m2, m3, m4] = self.marks;
        let [left, top, right, bottom] = text_box.corners.map(unit);
        format!("{m0}{left}{m1}{top}{m2}{right}{m3}{bottom}{m4}")
    }

    /// The boxes of an answer in its order, and what is wrong with those that are none.
    pub fn read(&self, text: &str) -> Vec<Result<TextBox, BoxError>> {
        let [open, close] = self.label;
        let mut found = Vec::new();
        let mut label: Option<&str> = None;
        let mut at = 0;
        while let Some(start) = text[at..].find(self.marks[0]).map(|i| at + i) {
            let between = &text[at..start];
            if let Some(end) = between.rfind(close) {
                let words = &between[..end];
                label = words.rfind(open).map(|i| words[i + open.len()..].trim());
                if !self.is_joint(&between[end + close.len()..]) {
                    label = None;
                }
            } else if !self.is_joint(between) {
                label = None;
            }
            let corners = self.corners(text, start);
            // What follows a box that is none may be one.
            at = corners.as_ref().map_or(start + self.marks[0].len(), |(_, end)| *end);
            found.push(corners.map(|(corners, _)| TextBox {
                label: label.map(str::to_owned).filter(|label| !label.is_empty()),
                corners,
            }));
        }
        found
    }

    /// Whether a label still counts behind these words.
    fn is_joint(&self, words: &str) -> bool {
        words.split(self.joint).all(|rest| rest.trim().is_empty())
    }

    /// The corners of the box that begins at `start`, and where it ends.
    fn corners(&self, text: &str, start: usize) -> Result<([f64; 4], usize), BoxError> {
        let mut numbers = [0_u32; 4];
        let mut at = start;
        for (number, mark) in numbers.iter_mut().zip(self.marks) {
            at = self.mark(text, start, at, mark)?;
            let rest = text[at..].trim_start();
            let from = text.len() - rest.len();
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            at = from + digits;
            if digits == 0 {
                return Err(self.not_as_expected(text, start, at, "0"));
            }
            // A number of any length is larger than there are.
            *number = text[from..at].parse().unwrap_or(u32::MAX);
        }
        let end = self.mark(text, start, at, self.marks[4])?;
        let written = || shown(&text[start..end]);
        let [left, top, right, bottom] = numbers;
        if numbers.iter().any(|n| *n > self.units) {
            return Err(BoxError::Outside { written: written(), units: self.units });
        }
        if right < left || bottom < top {
            return Err(BoxError::Inverted { written: written() });
        }
        Ok((numbers.map(|n| f64::from(n) / f64::from(self.units)), end))
    }

    /// Where `mark` ends that stands at `at`, perhaps behind spaces.
    fn mark(&self, text: &str, start: usize, at: usize, mark: &str) -> Result<usize, BoxError> {
        let rest = text[at..].trim_start();
        match rest.strip_prefix(mark) {
            Some(behind) => Ok(text.len() - behind.len()),
            None => Err(self.not_as_expected(text, start, at, mark)),
        }
    }

    /// That `expected` does not stand at `at` in the box that begins at `start`.
    fn not_as_expected(&self, text: &str, start: usize, at: usize, expected: &str) -> BoxError {
        let rest = text[at..].trim();
        if expected.starts_with(rest) {
            return BoxError::Unfinished { written: shown(&text[start..]) };
        }
        let [m0, m1, m2, m3, m4] = self.marks;
        let form = format!("{m0}left{m1}top{m2}right{m3}bottom{m4} in 0 to {}", self.units);
        let behind = start + m0.len();
        let ends = [text[behind..].find(m4).map(|i| i + m4.len()), text[behind..].find(m0)];
        let end = ends.into_iter().flatten().min().map_or(text.len(), |i| behind + i);
        BoxError::Malformed { written: shown(&text[start..end]), form }
    }
}

/// The beginning of a text that may be long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

impl TextBox {
    /// The box of left, top, right and bottom in pixels of a picture of which the model sees `field`, as
    /// in [`TextBox::pixels`]. What the model does not see is cut off.
    pub fn of_pixels(pixels: [f64; 4], field: &[f64; 4]) -> Self {
        let [left, top, width, height] = *field;
        let x = |pixel: f64| ((pixel - left) / width).clamp(0.0, 1.0);
        let y = |pixel: f64| ((pixel - top) / height).clamp(0.0, 1.0);
        let [x0, y0, x1, y1] = pixels;
        Self { label: None, corners: [x(x0), y(y0), x(x1), y(y1)] }
    }

    /// Left, top, right and bottom in pixels of a picture of `size`, width and height, of which the
    /// model saw `field`: left and top, width and height, in pixels of the picture. What lies outside
    /// of the picture is cut off.
    pub fn pixels(&self, field: &[f64; 4], size: (usize, usize)) -> [f64; 4] {
        let [left, top, width, height] = *field;
        let x = |share: f64| (left + share * width).clamp(0.0, size.0 as f64);
        let y = |share: f64| (top + share * height).clamp(0.0, size.1 as f64);
        let [x0, y0, x1, y1] = self.corners;
        [x(x0), y(y0), x(x1), y(y1)]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V2: BoxNotation = BoxNotation::MINIGPT_V2;
    const OTHER: BoxNotation = BoxNotation::QWEN_VL;

    fn labels(text: &str) -> Vec<Option<String>> {
        V2.read(text).into_iter().map(|b| b.unwrap().label).collect()
    }

    #[test]
    fn labels_belong_to_the_boxes_right_behind_them() {
        let text = "A <p>man</p> {<0><1><2><3>}<delim>{<4><5><6><7>} on <p> a horse </p> {<8><9><10><11>} \
                    and {<1><1><1><1>}, <p>a hat</p>, {<1><1><1><1>}";
        let [man, horse] = ["man", "a horse"].map(|label| Some(label.to_owned()));
        assert_eq!(labels(text), [man.clone(), man, horse, None, None]);
        assert_eq!(labels("<p></p>{<1><1><2><2>}</p> {<1><1><2><2>}"), [None, None]);
    }

    #[test]
    fn another_notation_is_another_table() {
        let found = OTHER.read("<ref>the dog</ref><box>(70,250),(500,1000)</box>");
        let dog = TextBox { label: Some("the dog".to_owned()), corners: [0.07, 0.25, 0.5, 1.0] };
        assert_eq!(found, [Ok(dog)]);
    }

    #[test]
    fn pixels_are_asked_about_in_the_units_of_the_model() {
        // A picture of 400 x 200 whose middle the model sees.
        let field = [100.0, 0.0, 200.0, 200.0];
        let text_box = TextBox::of_pixels([150.0, 20.0, 250.0, 200.0], &field);
        assert_eq!(text_box, TextBox { label: None, corners: [0.25, 0.1, 0.75, 1.0] });
        assert_eq!(V2.write(&text_box), "{<25><10><75><100>}");
        assert_eq!(OTHER.write(&text_box), "<box>(250,100),(750,999)</box>");
        let back = text_box.pixels(&field, (400, 200));
        assert_eq!(back.map(|pixel| pixel as u32), [150, 20, 250, 200]);
        let read = V2.read(&V2.write(&text_box)).remove(0).unwrap();
        assert_eq!(read, text_box);
        let outside = TextBox::of_pixels([0.0, -5.0, 50.0, 300.0], &field);
        assert_eq!(outside, TextBox { label: None, corners: [0.0, 0.0, 0.0, 1.0] });
    }

    #[test]
    fn what_is_no_box_is_told_and_the_next_is_read() {
        let error = |text: &str| V2.read(text).remove(0).unwrap_err();
        let written = |text: &str| text.to_owned();
        assert_eq!(
            error("{<50><10><20><60>}"),
            BoxError::Inverted { written: written("{<50><10><20><60>}") }
        );
        for outside in ["{<0><0><101><5>}", "{<0><0><99999999999999999999><5>}"] {
            assert_eq!(error(outside), BoxError::Outside { written: written(outside), units: 100 });
        }
        for cut in ["{<", "{<1", "{<1>", "{<1><2><3><4>", "{<1><2> "] {
            assert_eq!(error(cut), BoxError::Unfinished { written: written(cut) });
        }
        for broken in
            ["{<1><2><3>}", "{<-1><2><3><4>}", "{<1.5><2><3><4>}", "{<a", "{<1><2><3><4>]"]
        {
            let is_told =
                matches!(error(broken), BoxError::Malformed { written, .. } if written == broken);
            assert!(is_told, "{broken}: {}", error(broken));
        }
        let found = V2.read("<p>a</p> {<1><2>} {<{<1><2><3><4>}");
        assert_eq!(found.len(), 3);
        assert!(found[0].is_err() && found[1].is_err() && found[2].is_ok());
        assert!(V2.read("no box { } < > {12}").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[{}<>p/0-9 ,é]{0,60}|\\PC{0,40}") {
            V2.read(&text);
            OTHER.read(&text);
        }

        /// The rule of the release: `int(x / width * 100)`.
        #[test]
        fn pixels_come_back_to_the_unit(width in 1..4000_usize, x in 0.0..1.0_f64) {
            let x = x * width as f64;
            let unit = (x / width as f64 * 100.0) as u32;
            let text = format!("{{<{unit}><0><{unit}><100>}}");
            let found = V2.read(&text).remove(0).unwrap();
            let field = [0.0, 0.0, width as f64, 10.0];
            let [left, top, right, bottom] = found.pixels(&field, (width, 10));
            prop_assert_eq!(V2.read(&text).len(), 1);
            prop_assert!((left - 1e-9..=left + width as f64 / 100.0 + 1e-9).contains(&x));
            prop_assert_eq!((left, top, bottom), (right, 0.0, 10.0));
        }
    }
}
