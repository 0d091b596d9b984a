//! `ocelli model info`: parts, sizes and costs of a model.

use super::shorten;
use crate::failure::Failure;
use crate::global::Global;
use crate::output::Output;
use crate::published::{Reported, counts};
use crate::session::{self, ModelArgs, Quant};
use crate::shapes;
use crate::table::{bytes, columns, thousands};
use ocelli_models::{Inventory, Model, Need, Work, cost};
use ocelli_nn::checkpoint::Checkpoint;
use ocelli_nn::{Builder, Parameters};
use std::path::{Path, PathBuf};

/// Tokens of the run whose memory is told.
const RUN_TOKENS: usize = 512;

/// Show the parts of a model, their sizes, and what a picture costs
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ocelli model info openai/clip-vit-base-patch32
  ocelli model info --shape vit-b16
  ocelli model info --shape ViT-L/14@336
  ocelli model info --shapes llava-1.5-7b-hf.json

A multiply-add counts as two operations. Memory is the weights of linear layers as the kernels hold
them, in f32 or as --quant and --dtype say; all other weights; and what one picture of a batch holds
between the layers, or one token of a text in the cache.")]
pub(super) struct Args {
    /// Model: a folder, a weights file, or org/name[@revision] of the hub
    #[arg(value_name = "MODEL", conflicts_with_all = ["model", "shape"])]
    path: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// A published size instead: vit-b16, vit-s16, clip-l14, ViT-B/32, RN50, ...
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    shape: Option<String>,
    /// Names and shapes of a checkpoint's tensors instead, in JSON: says whether a model takes all
    /// of them, without any weights
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "path", "shape"])]
    shapes: Option<PathBuf>,
}

pub(super) fn run(global: &Global, args: &Args) -> Result<(), Failure> {
    let mut out = Output::new();
    if let Some(shape) = &args.shape {
        let b = Builder::zeros();
        let model = shapes::build(shape, &b)?;
        let parameters = b.finish().map_err(ocelli_models::Error::from)?;
        out.text(&columns_of(&[("model", format!("{shape}, {}", model.kind()))]))?;
        let reported = counts(&shape.to_ascii_lowercase());
        out.text(&described(&model, &parameters, reported)?)?;
        if reported.is_empty() && model.talker().is_some() {
            out.text("\nno paper prints a count for this size\n")?;
        }
        return out.flush();
    }
    if let Some(file) = &args.shapes {
        let found = ocelli_models::inventory(file, args.model.quant.and_then(Quant::blocks))?;
        let opened = &found.opened;
        if let Some(kind) = args.model.narrow() {
            opened.parameters.narrow(kind);
        }
        let kind = format!("{} ({})", opened.model.kind(), opened.family.name());
        out.text(&columns_of(&[("model", kind), ("tensors", taken(file, &found)?)]))?;
        out.text(&described(&opened.model, &opened.parameters, &[])?)?;
        return out.flush();
    }
    let named = args.path.clone().or_else(|| args.model.model.clone());
    let model = ModelArgs { model: named, ..args.model.clone() };
    let opened = &session::find(global, &model)?.measure()?;
    let path = &opened.path;
    let kind = format!("{} ({})", opened.model.kind(), opened.family.name());
    let weights = if args.is_builtin() { "inside this program".to_owned() } else { files(path)? };
    out.text(&columns_of(&[("model", kind), ("weights", weights)]))?;
    for source in &opened.sources {
        out.text(&columns_of(&[(source.part, source.path.display().to_string())]))?;
    }
    out.text(&described(&opened.model, &opened.parameters, &[])?)?;
    out.flush()
}

impl Args {
    /// Whether no model was named, so that the built-in one is meant.
    fn is_builtin(&self) -> bool {
        self.path.is_none() && self.model.model.is_none()
    }
}

/// What became of the tensors of a list; fails if it contradicts itself.
fn taken(file: &Path, found: &Inventory) -> Result<String, Failure> {
    let counts = [("tensors", found.tensors), ("elements", found.elements)];
    for ((what, counted), stated) in counts.into_iter().zip(found.stated) {
        if let Some(stated) = stated.filter(|stated| *stated != counted) {
            return Err(Failure::model(format!(
                "{}: its keys have {counted} {what}, it says {stated}; write the list again",
                file.display()
            )));
        }
    }
    let count = |n: usize| thousands(n as u64);
    let mut text = format!(
        "{} of {} values, none missing, none unused",
        count(found.tensors),
        count(found.elements)
    );
    if !found.unneeded.is_empty() {
        let shown = found.unneeded.len().min(4);
        let more = if shown < found.unneeded.len() { ", ..." } else { "" };
        let names = found.unneeded[..shown].join(", ");
        text += &format!("; {} known and not needed: {names}{more}", found.unneeded.len());
    }
    Ok(text)
}

/// The files that hold the tensors, each once, with their sizes.
fn files(path: &Path) -> Result<String, Failure> {
    let checkpoint = Checkpoint::open(path)?;
    let mut files: Vec<&Path> =
        checkpoint.names().filter_map(|name| checkpoint.file_of(name)).collect();
    files.sort_unstable();
    files.dedup();
    let told = |file: &&Path| {
        let size = file.metadata().map_or(0, |m| m.len());
        format!("{} ({})", file.display(), bytes(size))
    };
    Ok(files.iter().map(told).collect::<Vec<_>>().join(", "))
}

/// A count of so many millions, as papers print it.
fn millions(n: f64) -> String {
    if n < 1000.0 { format!("{n} M") } else { format!("{} B", n / 1000.0) }
}

fn columns_of(pairs: &[(&str, String)]) -> String {
    pairs.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:<11} {value}\n"))
}

fn described(
    model: &Model,
    parameters: &Parameters,
    reported: &[Reported],
) -> Result<String, Failure> {
    let gflop = |flops: u64| format!("{:.2} GFLOP", flops as f64 / 1e9);
    let need = Need::of(model, parameters, Work::default());
    let (weights, copies) = (bytes(need.weights), bytes(need.packed));
    let mut memory = format!("{copies} of linear layers, {weights} of other weights");
    let mut lines = Vec::new();
    if let Some((cost, (img_h, img_w))) = cost::of_picture(model, false) {
        let size = format!("{img_w} x {img_h} = {} pixels", thousands((img_w * img_h) as u64));
        let tokens = format!("{} tokens", thousands(cost.tokens as u64));
        lines.push(("picture", format!("{size}, {tokens}, {}", gflop(cost.operations))));
        memory += &format!(", {} a picture", bytes(4 * cost.values));
    }
    if let Some(cost) = cost::of_text(model, false) {
        lines.push(("text", format!("up to {} tokens, {}", cost.tokens, gflop(cost.operations))));
        memory += &format!(", {} a text", bytes(4 * cost.values));
    }
    let joint = match model {
        Model::Clip(clip) => Some(clip.config().embed_dim),
        Model::Lit(lit) => Some(lit.config().embed_dim),
        _ => None,
    };
    if let Some(joint) = joint {
        lines.push(("joint space", format!("{joint} numbers")));
    }
    if model.token_bytes() > 0 {
        memory += &format!(", {} a token", bytes(model.token_bytes() as u64));
    }
    lines.push(("memory", memory));
    if model.token_bytes() > 0 {
        let pictures = usize::from(model.talker().is_some());
        let work = Work { texts: 1, written: RUN_TOKENS, read: 0, pictures };
        let shown = if pictures > 0 { "a picture and " } else { "" };
        let total = bytes(Need::of(model, parameters, work).total());
        lines.push(("a run", format!("about {total} with {shown}{RUN_TOKENS} tokens")));
    }
    let mut text = columns_of(&lines);
    text += "\n";
    text += &columns(&parts(model, parameters, reported));
    if !reported.is_empty() {
        text += &explained(parameters, reported);
    }
    if let Model::Vit(vit) = model {
        text += &shorten::table(vit.config())?;
    }
    Ok(text)
}

/// How far the counts are from what is reported, and why where it is more than rounding.
fn explained(parameters: &Parameters, reported: &[Reported]) -> String {
    let mut text = "\nreported is what the paper, or who released the model, prints".to_owned();
    for r in reported.iter().filter(|r| !r.why.is_empty()) {
        let off = 100.0 * r.off(parameters);
        text += &format!("\n  {} {off:+.1} %: {}", r.part, r.why);
    }
    text + "\n"
}

/// The parts with their parameters, in the order of the forward pass.
fn parts(model: &Model, parameters: &Parameters, reported: &[Reported]) -> Vec<Vec<String>> {
    // Systems of several models have these as parts.
    let whole = matches!(model, Model::Vit(_) | Model::NfNet(_) | Model::Blip2(_))
        || model.talker().is_some();
    let levels = if whole { 1 } else { 2 };
    let mut parts: Vec<(String, u64, u64)> = Vec::new();
    for p in parameters.iter().filter(|p| !p.is_buffer()) {
        let part = p.name().split('.').take(levels).collect::<Vec<_>>().join(".");
        let (n, held) = (p.elements() as u64, p.bytes());
        match parts.iter_mut().find(|(name, ..)| *name == part) {
            Some((_, elements, bytes)) => (*elements, *bytes) = (*elements + n, *bytes + held),
            None => parts.push((part, n, held)),
        }
    }
    let all = parameters.elements() as u64;
    parts.push(("all".to_owned(), all, parts.iter().map(|(_, _, held)| held).sum()));
    let mut rows = vec![["part", "parameters", "share", "bytes"].map(str::to_owned).to_vec()];
    rows.extend(parts.into_iter().map(|(name, n, held)| {
        let share = 100.0 * n as f64 / all.max(1) as f64;
        vec![name, thousands(n), format!("{share:.1} %"), bytes(held)]
    }));
    if !reported.is_empty() {
        rows[0].push("reported".to_owned());
        for row in &mut rows[1..] {
            let of_part = reported.iter().find(|r| r.part == row[0]);
            row.push(of_part.map_or_else(String::new, |r| millions(r.millions)));
        }
    }
    rows
}
