//! Boxes of answers as pixels of their pictures, and drawn on them.

use crate::failure::{Failure, chain};
use crate::session::Session;
use clap::Args;
use ocelli_data::image::{DrawnBox, Limits, Processor, draw_boxes, encode_png, open};
use ocelli_data::text::{BoxNotation, TextBox};
use ocelli_models::systems::talker::Talker;
use serde::Serialize;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

/// Where boxes are drawn.
#[derive(Args, Clone, Debug)]
pub(crate) struct DrawArgs {
    /// Draw the boxes of the answer on the picture and write it as PNG; for models that answer with
    /// boxes
    #[arg(long, value_name = "FILE")]
    pub(crate) draw: Option<PathBuf>,
}

/// A box that is asked about.
#[derive(Args, Clone, Debug)]
pub(crate) struct RegionArgs {
    /// A box of the picture in pixels, which stands in the question where it says {box}; for models that
    /// know boxes
    #[arg(long = "box", value_name = "LEFT,TOP,RIGHT,BOTTOM", value_parser = pixels)]
    region: Option<[f64; 4]>,
}

/// What stands in a question for a box.
const PLACE: &str = "{box}";

fn pixels(text: &str) -> Result<[f64; 4], String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|n| n.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[left, top, right, bottom])
            if left >= 0.0 && top >= 0.0 && left < right && top < bottom && right + bottom < 1e9 =>
        {
            Ok([left, top, right, bottom])
        }
        _ => Err("expected four numbers of pixels, such as 30,40,150,120, that grow from left to right and \
                  from top to bottom"
            .to_owned()),
    }
}

impl RegionArgs {
    /// Whether a box is asked about, which the question must have a place for.
    pub(crate) fn check(&self, question: &str, pictures: &[PathBuf]) -> Result<bool, Failure> {
        match (self.region.is_some(), question.contains(PLACE)) {
            (false, false) => return Ok(false),
            (true, true) => {}
            (true, false) => {
                return Err(Failure::usage("--box: write {box} in the question where it belongs"));
            }
            (false, true) => {
                return Err(Failure::usage("{box} in the question: say with --box which one"));
            }
        }
        match pictures {
            [one] if !one.is_dir() => Ok(true),
            _ => Err(Failure::usage("--box is a box of one picture; name one file")),
        }
    }

    /// The question with the box as the model of `drawing` writes it.
    pub(crate) fn ask(
        &self,
        question: &str,
        drawing: &Drawing,
        frame: Frame,
    ) -> Result<String, Failure> {
        let (Some(region), Some(notation)) = (self.region, drawing.notation) else {
            return Ok(question.to_owned());
        };
        let ((width, height), [.., right, bottom]) = (frame.size, region);
        if right > width as f64 || bottom > height as f64 {
            return Err(Failure::usage(format!(
                "--box ends at {right},{bottom}, but the picture has {width} x {height} pixels"
            )));
        }
        let text_box = TextBox::of_pixels(region, &frame.field);
        Ok(question.replace(PLACE, &notation.write(&text_box)))
    }
}

/// A box of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Found {
    /// What the answer says is there.
    label: Option<String>,
    /// Left, top, right and bottom in pixels of the picture as it is in its file.
    pixels: [f64; 4],
}

/// The boxes of an answer, and what was wrong with those that are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Boxes {
    #[serde(skip_serializing_if = "Option::is_none")]
    boxes: Option<Vec<Found>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    box_errors: Vec<String>,
}

/// What is known of a picture that boxes may be on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Width and height, in pixels.
    size: (usize, usize),
    /// What the model sees of it.
    field: [f64; 4],
}

impl Frame {
    /// Of a picture of `size`, width and height.
    pub(crate) fn new(processor: &Processor, size: (usize, usize)) -> Result<Self, String> {
        let field = processor.field(size.0, size.1).map_err(|e| chain(&e))?;
        Ok(Self { size, field })
    }
}

/// Which models know boxes.
const KNOWING: &str = "a MiniGPT-v2 or a Qwen-VL, which answer with boxes";

/// How a model writes boxes, and where they are to be drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drawing<'a> {
    notation: Option<&'static BoxNotation>,
    file: Option<&'a Path>,
    /// Whether pictures are turned as their EXIF orientation asks.
    upright: bool,
}

impl<'a> Drawing<'a> {
    /// Of a model, which must write boxes if they are to be drawn.
    pub(crate) fn new(
        session: &Session,
        args: &'a DrawArgs,
        upright: bool,
    ) -> Result<Self, Failure> {
        let notation = session.opened.model.talker().and_then(Talker::boxes);
        if args.draw.is_some() && notation.is_none() {
            return Err(session.unsuitable("--draw", KNOWING));
        }
        Ok(Self { notation, file: args.draw.as_deref(), upright })
    }

    /// That the model knows boxes, if one is asked about.
    pub(crate) fn knows(&self, session: &Session, is_asked: bool) -> Result<(), Failure> {
        if is_asked && self.notation.is_none() {
            return Err(session.unsuitable("--box", KNOWING));
        }
        Ok(())
    }

    /// The boxes of an answer about a picture; nothing if the model writes none.
    pub(crate) fn read(&self, answer: &str, frame: Frame) -> Boxes {
        let Some(notation) = self.notation else { return Boxes::default() };
        let (mut boxes, mut box_errors) = (Vec::new(), Vec::new());
        for found in notation.read(answer) {
            match found {
                Ok(one) => {
                    let pixels = one.pixels(&frame.field, frame.size).map(to_hundredth);
                    boxes.push(Found { label: one.label, pixels });
                }
                Err(error) => box_errors.push(error.to_string()),
            }
        }
        Boxes { boxes: Some(boxes), box_errors }
    }

    /// Says what is no box, and draws the others if that was asked for.
    pub(crate) fn show(&self, found: &Boxes, picture: &Path) -> Result<(), Failure> {
        for error in &found.box_errors {
            tell(&format!("{}: {error}", picture.display()));
        }
        let (Some(file), Some(boxes)) = (self.file, &found.boxes) else { return Ok(()) };
        if boxes.is_empty() {
            tell(&format!("no boxes in the answer; {} is not written", file.display()));
            return Ok(());
        }
        let read = open(picture, &Limits::default()).map_err(|e| Failure::input(chain(&e)))?;
        let read = if self.upright { read.upright() } else { read };
        let drawn: Vec<DrawnBox> = boxes
            .iter()
            .map(|b| DrawnBox { corners: b.pixels, label: b.label.clone().unwrap_or_default() })
            .collect();
        let png = encode_png(&draw_boxes(&read.to_rgb(), &drawn));
        let png = png.map_err(|e| Failure::input(format!("{}: {e}", picture.display())))?;
        crate::output::write_file(file, &png)?;
        let count =
            if boxes.len() == 1 { "1 box".to_owned() } else { format!("{} boxes", boxes.len()) };
        tell(&format!("{count} on {} in {}", picture.display(), file.display()));
        Ok(())
    }
}

/// A hundredth of a pixel is more than any model knows.
fn to_hundredth(pixel: f64) -> f64 {
    (pixel * 100.0).round() / 100.0
}

fn tell(text: &str) {
    // Nobody is left to be told of a terminal that is gone.
    let _ = writeln!(stderr(), "{text}");
}
