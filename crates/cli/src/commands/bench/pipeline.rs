//! Pictures from the bytes of their files to vectors, by the threads and batches of `ocelli embed`.

use super::{Args, say};
use crate::failure::Failure;
use crate::inputs::{Input, Inputs};
use crate::pictures::{BATCHES_AHEAD, Batch, Pictures, Reading, decoding_threads};
use crate::table::{bytes, columns};
use crate::{memory, unread, vectors};
use ocelli_data::image::{Limits, Processor, encode_jpeg, grained};
use ocelli_kernels::pool;
use ocelli_models::Model;
use ocelli_tensor::{Tensor, no_grad};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// The JPEG that is made where no pictures are given: its sides in pixels, and its quality.
const USUAL_SIZE: (usize, usize) = (640, 480);
const QUALITY: u8 = 90;
/// Pictures that are taken of those that are given.
const MOST_PICTURES: usize = 10_000;
/// Batches that a part is timed for, unless they would take longer than [`SECONDS`].
const RUNS: usize = 30;
const SECONDS: f64 = 5.0;

/// Which pictures, and how they are read.
#[derive(clap::Args)]
pub(super) struct Given {
    /// Pictures for a pipeline to take, over and over: files, folders, patterns, or - for a list; without
    /// any a JPEG that is made
    #[arg(value_name = "IMG")]
    images: Vec<PathBuf>,
    /// Pixels of the JPEG that is made for a pipeline [default: 640x480]
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with = "images")]
    picture: Option<(usize, usize)>,
    /// Decode large JPEGs of a pipeline in part, as `ocelli embed --fast-decode` does
    #[arg(long)]
    fast_decode: bool,
}

impl Given {
    pub(super) fn is_any(&self) -> bool {
        !self.images.is_empty() || self.picture.is_some() || self.fast_decode
    }
}

/// Width and height, as in `640x480`.
fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once('x');
    let sides = sides.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    let most = Limits::default().max_pixels;
    let fits =
        |width: u16, height: u16| (1..=most).contains(&(u64::from(width) * u64::from(height)));
    match sides {
        Some((width, height)) if fits(width, height) => Ok((width.into(), height.into())),
        _ => Err(format!("expected width and height such as 640x480, {most} pixels at most")),
    }
}

/// That the model turns pictures into vectors.
pub(super) fn check(model: &Model) -> Result<(), Failure> {
    if model.picture_encoder().is_some() {
        return Ok(());
    }
    let action = match model.causal() {
        Some(_) => "time it with --task prefill or decode",
        None => "name a ViT, a CLIP or another model that `ocelli embed` takes",
    };
    Err(Failure::usage(format!(
        "--task pipeline needs a model that turns pictures into vectors; this model is {}: {action}",
        model.kind()
    )))
}

/// What is timed.
pub(super) struct Step {
    model: Model,
    processor: Processor,
    reading: Reading,
    batch: usize,
    inputs: Vec<Input>,
    /// What the model reads of the first, `[1, 3, img_h, img_w]`.
    first: Tensor,
}

/// Figures of a run; times in milliseconds.
#[derive(Serialize)]
struct Figures {
    /// Of a batch from bytes to vectors, while the next are decoded.
    median_ms: f64,
    best_ms: f64,
    runs: usize,
    peak_rss_mib: f64,
    images_per_s: f64,
    /// The following are of a picture, in the mean.
    decode_one_thread_ms: f64,
    decode_ms: f64,
    tower_ms: f64,
    pipeline_ms: f64,
    megapixels: f64,
    picture_bytes: u64,
    batch: usize,
    threads: usize,
}

impl Step {
    /// Finds the pictures, and looks whether the first can be read.
    pub(super) fn new(
        args: &Args,
        model: Model,
        processor: Option<Processor>,
    ) -> Result<Self, Failure> {
        let processor = processor.ok_or_else(|| {
            let kind = model.kind();
            Failure::usage(format!("how {kind} of no files sees is not known; name one by -m"))
        })?;
        let inputs: Vec<Input> = if args.given.images.is_empty() {
            let (width, height) = args.given.picture.unwrap_or(USUAL_SIZE);
            let jpeg = grained(width, height).and_then(|p| encode_jpeg(&p, QUALITY));
            let jpeg = jpeg.map_err(|e| Failure::usage(format!("--picture: {e}")))?;
            vec![Input::Bytes(jpeg.into())]
        } else {
            Inputs::new(args.given.images.clone()).take(MOST_PICTURES).collect()
        };
        let mut reading = Reading::default();
        if args.given.fast_decode {
            reading = reading.in_part(&processor);
        }
        let mut first =
            Pictures::on(1, inputs.clone().into_iter().take(1), 1, reading, processor.clone())?;
        let first = next(&mut first, 1)?.pixels;
        let first = first.ok_or_else(|| Failure::usage("no pictures: name others"))?;
        let batch = args.batch as usize;
        Ok(Self { model, processor, reading, batch, inputs, first })
    }

    /// Milliseconds of each of `count` batches, one behind the other from a start without any that is
    /// decoded.
    pub(super) fn times(&self, count: usize) -> Result<Vec<f64>, Failure> {
        let mut start = Instant::now();
        let pictures = count.saturating_mul(self.batch);
        let mut pictures = self.start(decoding_threads(), pictures)?;
        let mut timed = || {
            self.look(&mut pictures)?;
            let ms = start.elapsed().as_secs_f64() * 1e3;
            start = Instant::now();
            Ok(ms)
        };
        (0..count).map(|_| timed()).collect()
    }

    /// Starts to decode so many pictures, over and over those that there are.
    fn start(&self, threads: usize, pictures: usize) -> Result<Pictures, Failure> {
        let inputs = self.inputs.clone().into_iter().cycle().take(pictures);
        Pictures::on(threads, inputs, self.batch, self.reading, self.processor.clone())
    }

    /// Takes a batch of pictures, in parts if not all are decoded in time.
    fn take(
        &self,
        pictures: &mut Pictures,
        mut with: impl FnMut(&Batch) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut left = self.batch;
        while left > 0 {
            let batch = next(pictures, left)?;
            left -= batch.pictures.len();
            with(&batch)?;
        }
        Ok(())
    }

    /// Turns a batch of pictures into vectors as soon as they are decoded.
    fn look(&self, pictures: &mut Pictures) -> Result<(), Failure> {
        self.take(pictures, |batch| batch.pixels.as_ref().map_or(Ok(()), |p| self.encode(p)))
    }

    fn encode(&self, pixels: &Tensor) -> Result<(), Failure> {
        no_grad(|| vectors::of_pictures(&self.model, pixels))?;
        Ok(())
    }

    /// Times the parts and the whole, and says it.
    pub(super) fn report(&self, json: bool) -> Result<(), Failure> {
        let of_picture =
            |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64 / self.batch as f64;
        let threads = decoding_threads();
        let mut shape = self.first.shape().to_vec();
        shape[0] = self.batch;
        let pixels = Tensor::from_slice(&self.first.values().repeat(self.batch), &shape)?;
        let tower = repeated(1, || self.encode(&pixels))?;
        let mut sizes = Vec::new();
        let mut alone = self.start(1, usize::MAX)?;
        let decode_one = repeated(1, || {
            self.take(&mut alone, |batch| {
                sizes.extend(batch.pictures.iter().map(|p| (p.size.0 * p.size.1) as f64));
                Ok(())
            })
        })?;
        drop(alone);
        let mut all = self.start(threads, usize::MAX)?;
        let decode = repeated(1, || self.take(&mut all, |_| Ok(())))?;
        drop(all);
        // As many batches wait at the end as at the start.
        let mut both = self.start(threads, usize::MAX)?;
        let mut times = repeated(BATCHES_AHEAD + 1, || self.look(&mut both))?;
        let pipeline_ms = of_picture(&times);
        times.sort_by(f64::total_cmp);
        let figures = Figures {
            median_ms: times[times.len() / 2],
            best_ms: times[0],
            runs: times.len(),
            peak_rss_mib: memory::peak().unwrap_or(0) as f64 / f64::from(1 << 20),
            images_per_s: 1e3 / pipeline_ms,
            decode_one_thread_ms: of_picture(&decode_one),
            decode_ms: of_picture(&decode),
            tower_ms: of_picture(&tower),
            pipeline_ms,
            megapixels: sizes.iter().sum::<f64>() / sizes.len() as f64 / 1e6,
            picture_bytes: self.bytes(),
            batch: self.batch,
            threads: pool::threads(),
        };
        if json {
            let line = serde_json::to_string(&figures);
            return say(&line.map_err(|e| Failure::runtime(e.to_string()))?);
        }
        say(&figures.text(threads))
    }

    /// Of the file of a picture, in the mean.
    fn bytes(&self) -> u64 {
        let of = |input: &Input| match input {
            Input::Picture(path) => path.metadata().map_or(0, |file| file.len()),
            Input::Bytes(bytes) => bytes.len() as u64,
            Input::Unreadable { .. } => 0,
        };
        self.inputs.iter().map(of).sum::<u64>() / self.inputs.len().max(1) as u64
    }
}

impl Figures {
    fn text(&self, decoding: usize) -> String {
        let row =
            |what: String, ms: f64| vec![what, format!("{ms:.2}"), format!("{:.1}", 1e3 / ms)];
        let rows = [
            vec![String::new(), "ms a picture".to_owned(), "pictures/s".to_owned()],
            row("decode and prepare, threads: 1".to_owned(), self.decode_one_thread_ms),
            row(format!("decode and prepare, threads: {decoding}"), self.decode_ms),
            row(format!("the tower alone, threads: {}", self.threads), self.tower_ms),
            row("from bytes to vectors, overlapped".to_owned(), self.pipeline_ms),
        ];
        let share = 100.0 * self.tower_ms / (self.tower_ms + self.decode_ms);
        let limit = if share < 50.0 { "decoding" } else { "the tower" };
        format!(
            "pictures of {:.2} megapixels and {} in the mean, {} at once\n{}\
             the limit is {limit}: of the time of both the tower takes {share:.0} %, decoding {:.0} %\n\
             median {:.1} ms, best {:.1} ms over {} batches; peak memory {:.0} MiB",
            self.megapixels,
            bytes(self.picture_bytes),
            self.batch,
            columns(&rows),
            100.0 - share,
            self.median_ms,
            self.best_ms,
            self.runs,
            self.peak_rss_mib,
        )
    }
}

/// The next batch, of which every picture could be read.
fn next(pictures: &mut Pictures, most: usize) -> Result<Batch, Failure> {
    let batch = pictures.next_batch_of(most)?;
    let batch = batch.ok_or_else(|| Failure::runtime("no pictures are left; try again"))?;
    match batch.pictures.iter().find_map(|p| Some((&p.name, p.error.as_ref()?))) {
        Some((name, error)) => Err(Failure::input(unread::line(name, error))),
        None => Ok(batch),
    }
}

/// Milliseconds of each run behind the first `warm`.
fn repeated(
    warm: usize,
    mut run: impl FnMut() -> Result<(), Failure>,
) -> Result<Vec<f64>, Failure> {
    for _ in 0..warm {
        run()?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (times.len() < RUNS && start.elapsed().as_secs_f64() < SECONDS) {
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_two_sides_within_the_limits() {
        assert_eq!(size("640x480"), Ok((640, 480)));
        assert_eq!(size("8000x5000"), Ok((8000, 5000)));
        for wrong in ["", "640", "x", "640x", "0x480", "640x480x3", "-1x1", "8000x5001", "70000x1"]
        {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
