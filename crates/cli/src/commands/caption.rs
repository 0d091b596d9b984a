//! `ocelli caption`: what pictures show, in a sentence.

use crate::boxes::DrawArgs;
use crate::failure::Failure;
use crate::global::Global;
use crate::pictures::PictureArgs;
use crate::sampling::SamplingArgs;
use crate::session::{self, ModelArgs};
use crate::shots::ShotArgs;
use crate::texts::{self, Texts};
use crate::videos::VideoArgs;
use ocelli_models::systems::writer::Request;

/// Say what pictures show
#[derive(clap::Args)]
#[command(mut_arg("model", session::required))]
#[command(after_help = "\
Examples:
  ocelli caption -m Salesforce/blip-image-captioning-base photo.jpg
  ocelli caption -m blip/ --prompt 'a drawing of' --num-beams 3 --jsonl drawings/
  ocelli caption -m blip/ --top-p 0.9 --seed 1 photos/
  ocelli caption -m minigpt-v2/ -i '[grounding] please describe this image in details' --draw boxes.png photo.jpg

A picture that cannot be read is reported in its place; the exit code is then 3.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Words that each caption goes on from, '' for none; without it as the model was trained
    #[arg(short = 'i', long, value_name = "TEXT", alias = "query", short_alias = 'p')]
    prompt: Option<String>,
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
    videos: VideoArgs,
    #[command(flatten)]
    pictures: PictureArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let request = Request::Caption(args.prompt.as_deref());
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
            region: None,
        },
    )
}
