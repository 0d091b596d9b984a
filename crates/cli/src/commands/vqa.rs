//! `ocelli vqa`: an answer to a question about each picture.

use crate::boxes::{DrawArgs, RegionArgs};
use crate::failure::Failure;
use crate::global::Global;
use crate::pictures::PictureArgs;
use crate::sampling::SamplingArgs;
use crate::session::{self, ModelArgs};
use crate::shots::ShotArgs;
use crate::texts::{self, Texts};
use crate::videos::VideoArgs;
use ocelli_models::systems::writer::Request;

/// Answer a question about pictures
#[derive(clap::Args)]
#[command(mut_arg("model", session::required))]
#[command(after_help = "\
Examples:
  ocelli vqa -m Salesforce/blip-vqa-base -q 'how many dogs are there?' photo.jpg
  ocelli vqa -m blip-vqa/ -q 'what colour is the car?' --jsonl photos/
  ocelli vqa -m minigpt-v2/ -q '[refer] give me the location of the dog' --draw dog.png photo.jpg
  ocelli vqa -m Qwen-VL/ -q 'What is in {box}?' --box 30,40,150,120 photo.jpg

A picture that cannot be read is reported in its place; the exit code is then 3.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The question
    #[arg(long, value_name = "TEXT", aliases = ["prompt", "query"])]
    question: String,
    #[command(flatten)]
    shots: ShotArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A JSON object a line: {"image", "text"}, and "boxes" of models that answer with boxes
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    region: RegionArgs,
    #[command(flatten)]
    videos: VideoArgs,
    #[command(flatten)]
    pictures: PictureArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    if args.question.trim().is_empty() {
        return Err(Failure::usage("the question is empty; ask one with -q TEXT"));
    }
    let has_region = args.region.check(&args.question, &args.pictures.images)?;
    let request = Request::Answer(&args.question);
    texts::write(
        global,
        &Texts {
            model: &args.model,
            request,
            shots: &args.shots,
            sampling: &args.sampling,
            jsonl: args.jsonl,
            videos: args.videos,
            pictures: &args.pictures,
            draw: &args.draw,
            region: has_region.then_some(&args.region),
        },
    )
}
