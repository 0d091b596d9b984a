//! Pictures decoded and prepared in the background, a few batches ahead of the model.
//!
//! Memory is bounded: a picture is only begun while fewer than [`BATCHES_AHEAD`] batches wait, of videos
//! fewer by as much as they have frames, though one batch.
//! Results come in the order of the inputs, whichever thread is done first.

use crate::boxes::Frame;
use crate::failure::{Failure, chain};
use crate::inputs::{Input, Inputs};
use crate::interrupt;
use crate::videos::VideoArgs;
use clap::Args;
use ocelli_data::image::{self, Limits, Processor, Video, decode, open};
use ocelli_models::Work;
use ocelli_tensor::Tensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) const BATCHES_AHEAD: usize = 3;
/// How long a batch waits for more pictures before it is computed as it is.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often Ctrl-C is looked for while nothing arrives.
const GLANCE: Duration = Duration::from_millis(100);
const STACK_BYTES: usize = 8 << 20;

/// Which pictures, and how they are read.
#[derive(Args, Debug)]
pub(crate) struct PictureArgs {
    /// Pictures: files, folders (with all folders in them), patterns such as '*.jpg', or - for
    /// paths on standard input, one a line
    #[arg(value_name = "IMG")]
    pub(crate) images: Vec<PathBuf>,
    /// Pictures that the model sees at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = batch_size, alias = "batch_size")]
    pub(crate) batch_size: usize,
    /// Turn pictures as their EXIF orientation asks; the models' own programs do not
    #[arg(long)]
    pub(crate) upright: bool,
    /// Decode large JPEGs at a half, a quarter or an eighth of their size, though not below what the
    /// model looks at: faster, and a little other than the models' own programs
    #[arg(long)]
    pub(crate) fast_decode: bool,
}

impl PictureArgs {
    /// What a model has to do at a time.
    pub(crate) fn work(&self) -> Work {
        let known = Inputs::count(&self.images).map_or(self.batch_size, |n| n as usize);
        Work { pictures: known.min(self.batch_size), ..Work::default() }
    }

    /// How they are read for a model, at their full size.
    pub(crate) fn reading(&self, videos: VideoArgs) -> Reading {
        Reading { upright: self.upright, ..Reading::of(videos) }
    }

    /// That there is a picture at all.
    pub(crate) fn check_given(&self) -> Result<(), Failure> {
        if self.images.is_empty() {
            return Err(Failure::usage(
                "no pictures: name files, folders, patterns, or - for a list",
            ));
        }
        Ok(())
    }
}

fn batch_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected a number from 1 to 1024".to_owned()),
    }
}

/// The numbers that a model reads, `[3, img_h, img_w]` or of a video `[frames, 3, img_h, img_w]`.
struct Pixels {
    values: Vec<f32>,
    shape: Vec<usize>,
    /// Width and height of the picture that they were made from.
    from: (usize, usize),
}

/// A picture, read or not.
pub(crate) struct Picture {
    pub(crate) name: String,
    /// Why it could not be read; the others are in the batch's pixels, in order.
    pub(crate) error: Option<String>,
    /// Its width and height as it was read; of one that was not, 0.
    pub(crate) size: (usize, usize),
}

/// Pictures that follow one another; those that were read have one size, and videos as many frames.
pub(crate) struct Batch {
    pub(crate) pictures: Vec<Picture>,
    /// `[read, 3, img_h, img_w]`, of videos `[read, frames, 3, img_h, img_w]`, unless none could be read.
    pub(crate) pixels: Option<Tensor>,
}

struct Prepared {
    name: String,
    pixels: Result<Pixels, String>,
}

/// What the threads share: the inputs, the number of the next one, and leave to begin it.
struct Queue {
    inputs: Box<dyn Iterator<Item = Input> + Send>,
    next: u64,
    leave: Receiver<()>,
}

/// Prepares pictures in the background.
pub(crate) struct Pictures {
    done: Receiver<(u64, Prepared)>,
    leave: Sender<()>,
    /// Those that were done before their turn.
    early: BTreeMap<u64, Prepared>,
    /// The next in turn, taken from the threads but of another size than the batch before.
    held: Option<Prepared>,
    turn: u64,
    batch_size: usize,
}

impl Pictures {
    /// Starts the threads.
    pub(crate) fn start(args: &PictureArgs, processor: Processor) -> Result<Self, Failure> {
        Self::start_videos(args, VideoArgs::default(), processor)
    }

    /// Starts the threads for pictures that may be videos.
    pub(crate) fn start_videos(
        args: &PictureArgs,
        videos: VideoArgs,
        processor: Processor,
    ) -> Result<Self, Failure> {
        let named = args.images.clone();
        let inputs = match videos.frames {
            Some(_) => Inputs::of_videos(named),
            None => Inputs::new(named),
        };
        let mut reading = args.reading(videos);
        if args.fast_decode {
            reading = reading.in_part(&processor);
        }
        Self::of(inputs, args.batch_size, reading, processor)
    }

    /// Starts the threads for inputs that are read in one way, `batch_size` at a time.
    pub(crate) fn of(
        inputs: impl Iterator<Item = Input> + Send + 'static,
        batch_size: usize,
        reading: Reading,
        processor: Processor,
    ) -> Result<Self, Failure> {
        Self::on(decoding_threads(), inputs, batch_size, reading, processor)
    }

    /// The same on so many threads.
    pub(crate) fn on(
        threads: usize,
        inputs: impl Iterator<Item = Input> + Send + 'static,
        batch_size: usize,
        reading: Reading,
        processor: Processor,
    ) -> Result<Self, Failure> {
        let (leave, begin) = channel();
        let (finish, done) = channel();
        let inputs = Box::new(inputs);
        let queue = Arc::new(Mutex::new(Queue { inputs, next: 0, leave: begin }));
        let processor = Arc::new(processor);
        // Of videos fewer wait, though a whole batch. The next in turn is always among those that were
        // begun, as leave is used in the order of the inputs and comes back with each that is taken.
        let ahead = (BATCHES_AHEAD * batch_size).div_ceil(reading.videos.most()).max(batch_size);
        for _ in 0..ahead {
            // The receiver is in the queue above.
            let _ = leave.send(());
        }
        for i in 0..threads {
            let (queue, processor, finish) =
                (Arc::clone(&queue), Arc::clone(&processor), finish.clone());
            std::thread::Builder::new()
                .name(format!("decode-{i}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&queue, &processor, reading, &finish))
                .map_err(|e| Failure::runtime(format!("cannot start a thread: {e}")))?;
        }
        Ok(Self { done, leave, early: BTreeMap::new(), held: None, turn: 0, batch_size })
    }

    /// The next picture in turn, or `Err` with whether more may come.
    fn in_turn(&mut self, until: Option<Instant>) -> Result<Prepared, RecvTimeoutError> {
        if let Some(held) = self.held.take() {
            return Ok(held);
        }
        loop {
            if let Some(prepared) = self.early.remove(&self.turn) {
                self.turn += 1;
                // Nobody needs leave when all inputs are taken.
                let _ = self.leave.send(());
                return Ok(prepared);
            }
            let wait = until.map_or(GLANCE, |t| t.saturating_duration_since(Instant::now()));
            let (number, prepared) = self.done.recv_timeout(wait)?;
            self.early.insert(number, prepared);
        }
    }

    /// The next batch; none after the last.
    ///
    /// # Errors
    /// If Ctrl-C was pressed.
    pub(crate) fn next_batch(&mut self) -> Result<Option<Batch>, Failure> {
        self.next_batch_of(self.batch_size)
    }

    /// The next batch of `most` pictures at most; none after the last.
    ///
    /// # Errors
    /// As [`Pictures::next_batch`].
    pub(crate) fn next_batch_of(&mut self, most: usize) -> Result<Option<Batch>, Failure> {
        let mut pictures = Vec::new();
        let mut values = Vec::new();
        let mut shape: Option<Vec<usize>> = None;
        let mut until = None;
        while pictures.len() < most {
            if interrupt::asked() {
                return Err(Failure::interrupted());
            }
            let Prepared { name, pixels } = match self.in_turn(until) {
                Ok(prepared) => prepared,
                Err(RecvTimeoutError::Timeout) if until.is_none() => continue,
                Err(_) => break,
            };
            until = until.or_else(|| Some(Instant::now() + PATIENCE));
            let mut from = (0, 0);
            let error = match pixels {
                Ok(pixels) => {
                    if shape.as_ref().is_some_and(|shape| *shape != pixels.shape) {
                        self.held = Some(Prepared { name, pixels: Ok(pixels) });
                        break;
                    }
                    from = pixels.from;
                    values.extend_from_slice(&pixels.values);
                    shape = Some(pixels.shape);
                    None
                }
                Err(error) => Some(error),
            };
            pictures.push(Picture { name, error, size: from });
        }
        if pictures.is_empty() {
            return Ok(None);
        }
        let pixels = match shape {
            None => None,
            Some(mut shape) => {
                shape.insert(0, values.len() / shape.iter().product::<usize>().max(1));
                Some(Tensor::from_slice(&values, &shape)?)
            }
        };
        Ok(Some(Batch { pictures, pixels }))
    }
}

/// Threads that decode.
pub(crate) fn decoding_threads() -> usize {
    ocelli_kernels::pool::threads().min(16)
}

fn work(
    queue: &Mutex<Queue>,
    processor: &Processor,
    reading: Reading,
    finish: &Sender<(u64, Prepared)>,
) {
    loop {
        let (number, input) = {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.leave.recv().is_err() {
                return;
            }
            let Some(input) = queue.inputs.next() else { return };
            queue.next += 1;
            (queue.next - 1, input)
        };
        let prepared = match input {
            Input::Picture(path) => {
                let name = path.display().to_string();
                let pixels = prepare(&path, processor, reading);
                Prepared { name, pixels }
            }
            Input::Bytes(bytes) => {
                let picture = decode(&bytes, &reading.limits()).map_err(|e| chain(&e));
                let pixels = picture.and_then(|picture| pixels(picture, processor, reading));
                Prepared { name: format!("{} bytes", bytes.len()), pixels }
            }
            Input::Unreadable { name, error } => Prepared { name, pixels: Err(error) },
        };
        if finish.send((number, prepared)).is_err() {
            return;
        }
    }
}

/// Paths that were given one by one or with commas between, where no file is called so.
pub(crate) fn listed(given: &[PathBuf]) -> Vec<PathBuf> {
    let parts = |path: &PathBuf| match path.to_str() {
        Some(text) if text.contains(',') && !path.exists() => {
            text.split(',').filter(|part| !part.is_empty()).map(PathBuf::from).collect()
        }
        _ => vec![path.clone()],
    };
    given.iter().flat_map(parts).collect()
}

/// What the model reads of one picture, `[1, 3, img_h, img_w]`, or video,
/// `[1, frames, 3, img_h, img_w]`, and where boxes on it lie.
pub(crate) fn one(
    path: &Path,
    reading: Reading,
    processor: &Processor,
) -> Result<(Tensor, Frame), Failure> {
    let Pixels { values, mut shape, from } =
        prepare(path, processor, reading).map_err(Failure::input)?;
    let frame = Frame::new(processor, from).map_err(Failure::input)?;
    shape.insert(0, 1);
    Ok((Tensor::from_slice(&values, &shape)?, frame))
}

/// How files become pictures.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reading {
    upright: bool,
    /// See [`Limits::enough`].
    enough: Option<usize>,
    videos: VideoArgs,
}

impl Reading {
    /// As they lie in their files.
    pub(crate) fn of(videos: VideoArgs) -> Self {
        Self { videos, ..Self::default() }
    }

    /// The same, of large JPEGs no more than a model needs of them.
    pub(crate) fn in_part(self, processor: &Processor) -> Self {
        Self { enough: processor.enough(), ..self }
    }

    fn limits(self) -> Limits {
        Limits { enough: self.enough, ..Limits::default() }
    }

    /// The same, of a video its first frame.
    pub(crate) fn first_frame(self) -> Self {
        Self { videos: VideoArgs { frames: self.videos.frames.map(|_| 1) }, ..self }
    }
}

fn prepare(path: &Path, processor: &Processor, reading: Reading) -> Result<Pixels, String> {
    let limits = reading.limits();
    let Some(frames) = reading.videos.frames else {
        let picture = open(path, &limits).map_err(|e| chain(&e))?;
        return pixels(picture, processor, reading);
    };
    let video = Video::open(path, frames.into(), &limits).map_err(|e| chain(&e))?;
    let frames = video.len();
    let mut all: Option<Pixels> = None;
    for (i, frame) in video.enumerate() {
        let next = pixels(frame.map_err(|e| chain(&e))?, processor, reading)?;
        let Some(video) = &mut all else {
            all = Some(next);
            continue;
        };
        if video.shape != next.shape {
            return Err(format!(
                "{}: frame {} of {frames} that are seen is {:?} pixels for the model, the first is \
                 {:?}; give frames of one size",
                path.display(),
                i + 1,
                &next.shape[1..],
                &video.shape[1..]
            ));
        }
        video.values.extend_from_slice(&next.values);
    }
    let mut all =
        all.ok_or_else(|| format!("{}: no frames; name another video", path.display()))?;
    all.shape.insert(0, frames);
    Ok(all)
}

/// What the model reads of a picture.
fn pixels(
    picture: image::Picture,
    processor: &Processor,
    reading: Reading,
) -> Result<Pixels, String> {
    let picture = if reading.upright { picture.upright() } else { picture };
    let (width, height) = (picture.width(), picture.height());
    let (width, height) = processor.size_for(width, height).map_err(|e| chain(&e))?;
    let values = processor.pixels(&picture).map_err(|e| chain(&e))?;
    Ok(Pixels { values, shape: vec![3, height, width], from: picture.full_size() })
}
