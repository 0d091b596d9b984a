//! `ocelli verify`: the proof that a checkpoint runs here as it does in its reference.

mod bert;
mod blip;
mod blip2;
mod case;
mod causal;
mod clip;
mod eva_vit;
mod flamingo;
mod flamingo_parts;
mod generation;
mod gradients;
mod llava;
mod minigpt4;
mod mplug_owl;
mod nfnet;
mod qformer;
mod qwen_vl;
mod t5;
mod tokenizer;
mod visualglm;
mod vit;
mod xcomposer;

use crate::failure::Failure;
use crate::output::Output;
use case::Case;
use ocelli_models::{Family, Files, HeadCounts, Model, Opened};
use ocelli_tensor::Tensor;
use regex::Regex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Compare a checkpoint with stored outputs of its reference.
///
/// The folder holds the checkpoint, `golden.safetensors` with inputs (`in/*`) and expected results
/// (`out/*`, `embed/*`, `grad/*`, `adamw/*`), and optionally `golden.json` with settings. Everything is
/// computed from the checkpoint and the inputs alone. Or it holds a tokenizer, and `cases.json` with
/// texts and their ids.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  ocelli verify testdata/golden/vit/hf_classifier
  ocelli verify testdata/golden/clip/hf_vit --write computed.safetensors")]
pub(crate) struct Args {
    /// Folder with a checkpoint and golden.safetensors
    case: PathBuf,
    /// Write what was computed to this file, under the same names
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Read the checkpoint as one of this family, such as openai-clip
    #[arg(long, value_name = "NAME")]
    family: Option<String>,
}

/// Results by name, such as `out/logits`.
type Computed = BTreeMap<String, Tensor>;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if tokenizer::is_case(&args.case) {
        return tokenizer::run(&args.case);
    }
    let family = match &args.family {
        None => None,
        Some(name) => Some(Family::from_name(name).ok_or_else(|| {
            let known: Vec<&str> = Family::ALL.iter().map(|(n, _)| *n).collect();
            Failure::usage(format!("no family `{name}`; known are {}", known.join(", ")))
        })?),
    };
    let case = Case::open(&args.case)?;
    let heads = HeadCounts { vision: case.heads("vision"), text: case.heads("text") };
    let mut opened = Files::find(&case.checkpoint, family)?.open(heads)?;
    // The reference's gradients came through a rotation that was turned back by halves.
    match (opened.family, &mut opened.model) {
        (Family::XComposer, Model::XComposer(model)) => model.turn_half_back(),
        (Family::XComposer, Model::Llama(model)) => model.turn_half_back(),
        _ => {}
    }
    let computed = compute(&case, &opened)?;
    if let Some(path) = &args.write {
        case.write(path, &computed)?;
    }
    let failed = print(&case, &computed)?;
    match failed {
        0 => Ok(()),
        n => Err(Failure::runtime(format!("{n} results differ from the reference"))),
    }
}

fn compute(case: &Case, opened: &Opened) -> Result<Computed, Failure> {
    let mut computed = Computed::new();
    match &opened.model {
        Model::Vit(model) => vit::outputs(case, model, &mut computed)?,
        Model::Hybrid(model) => vit::hybrid_outputs(case, model, &mut computed)?,
        Model::Clip(model) => clip::outputs(case, model, &mut computed)?,
        Model::Bert(model) => bert::outputs(case, model, &mut computed)?,
        Model::EvaVit(model) => eva_vit::outputs(case, model, &mut computed)?,
        Model::NfNet(model) => nfnet::outputs(case, model, &mut computed)?,
        Model::Flamingo(model) => flamingo::outputs(case, model, &mut computed)?,
        Model::FlamingoParts(model) => flamingo_parts::outputs(case, model, &mut computed)?,
        Model::ClipVit(model) => eva_vit::clip_outputs(case, model, &mut computed)?,
        Model::QFormer(model) => qformer::outputs(case, opened, model, &mut computed)?,
        Model::Blip(model) => blip::outputs(case, opened, model, &mut computed)?,
        Model::Blip2(model) => blip2::outputs(case, model, &mut computed)?,
        Model::T5(model) => t5::outputs(case, model, &mut computed)?,
        Model::Llava(model) => llava::outputs(case, model, &mut computed)?,
        Model::MiniGpt4(model) => minigpt4::outputs(case, model, &mut computed)?,
        Model::MplugOwl(model) => mplug_owl::outputs(case, model, &mut computed)?,
        Model::Abstractor(model) => mplug_owl::abstractor_outputs(case, model, &mut computed)?,
        Model::QwenVl(model) => qwen_vl::outputs(case, model, &mut computed)?,
        Model::PositionResampler(model) => qwen_vl::adapter_outputs(case, model, &mut computed)?,
        Model::VisualGlm(model) => visualglm::outputs(case, model, &mut computed)?,
        Model::ImageEncoder(model) => visualglm::encoder_outputs(case, model, &mut computed)?,
        Model::ChatGlm(model) => visualglm::chatglm_outputs(case, model, &mut computed)?,
        Model::XComposer(model) => xcomposer::outputs(case, model, &mut computed)?,
        Model::Llama(_) | Model::Gpt2(_) | Model::Opt(_) | Model::GptNeox(_) | Model::Mpt(_) => {
            if let Some(model) = opened.model.causal() {
                causal::outputs(case, model, &mut computed)?;
            }
        }
        model @ (Model::Lit(_) | Model::LocalVit(_)) => return Err(no_reference(model).into()),
    }
    let loss = || match &opened.model {
        Model::Vit(model) => vit::loss(case, model),
        Model::Hybrid(model) => vit::hybrid_loss(case, model),
        Model::Clip(model) => clip::loss(case, model),
        Model::Bert(model) => bert::loss(case, model),
        Model::EvaVit(model) => eva_vit::loss(case, model),
        Model::NfNet(model) => nfnet::loss(case, model),
        Model::Flamingo(model) => flamingo::loss(case, model),
        Model::FlamingoParts(model) => flamingo_parts::loss(case, model),
        Model::ClipVit(_) => Ok(None),
        Model::QFormer(model) => qformer::loss(case, model),
        Model::Blip(model) => blip::loss(case, model),
        Model::Blip2(model) => blip2::loss(case, model),
        Model::T5(model) => t5::loss(case, model),
        Model::Llava(model) => llava::loss(case, model),
        Model::MiniGpt4(model) => minigpt4::loss(case, model),
        Model::MplugOwl(model) => mplug_owl::loss(case, model),
        Model::Abstractor(model) => mplug_owl::abstractor_loss(case, model),
        Model::QwenVl(model) => qwen_vl::loss(case, model),
        Model::PositionResampler(model) => qwen_vl::adapter_loss(case, model),
        Model::VisualGlm(model) => visualglm::loss(case, model),
        Model::ImageEncoder(model) => visualglm::encoder_loss(case, model),
        Model::ChatGlm(model) => visualglm::chatglm_loss(case, model),
        Model::XComposer(model) => xcomposer::loss(case, model),
        Model::Llama(_) | Model::Gpt2(_) | Model::Opt(_) | Model::GptNeox(_) | Model::Mpt(_) => {
            match opened.model.causal() {
                Some(model) => causal::loss(case, model),
                None => Ok(None),
            }
        }
        model @ (Model::Lit(_) | Model::LocalVit(_)) => Err(no_reference(model).into()),
    };
    gradients::compute(case, opened, &loss, &mut computed)?;
    Ok(computed)
}

/// Some families are ours alone.
fn no_reference(model: &Model) -> ocelli_models::Error {
    let (what, needs) = ("comparing with a reference", "a checkpoint of another program");
    ocelli_models::Error::Unsuitable { what, needs, is: model.kind().to_owned() }
}

/// Results inside a model that a case may hold but need not be computed.
fn is_inner(name: &str) -> bool {
    static INNER: OnceLock<Regex> = OnceLock::new();
    let inner = INNER.get_or_init(|| {
        let pattern = r"layer\d|block\d|blocks?\.\d|stem|patch_embed|v_patch|_norm$|attn0|mlp0|transform|_layer|^[vtq]_|enc_|dec_|pre_ln|ln_pre|project_(in|out)|embed_positions|inv_freq|blocked_mask";
        Regex::new(pattern).expect("the pattern is fixed")
    });
    name.starts_with("tap/") || name.strip_prefix("out/").is_some_and(|name| inner.is_match(name))
}

/// Absolute and relative tolerance of a result of these values, in the units of the result.
fn limits(name: &str, want: &[f32]) -> (f32, f32) {
    match name.split_once('/') {
        // Small values of a gradient carry the rounding of large ones: pixels moved by their last
        // place change those of `flamingo/openflamingo_mpt` by as much as this part of the largest.
        Some(("grad" | "grad_lm", _)) => {
            let largest = want.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
            ((5e-5 * largest).clamp(1e-5, 1e-4), 1e-3)
        }
        // Ids are right or wrong.
        Some(("gen", of)) if !of.contains("embeds") => (0.0, 0.0),
        // A gradient near zero becomes a whole step, so single values may differ more.
        Some(("adamw", _)) => (2e-4, 0.0),
        _ if name.contains("loss") => (1e-6, 1e-5),
        _ => (1e-4, 1e-4),
    }
}

/// Which tokens of a result `out/*` of `[batch, tokens, ..]` are padding, where the model computes
/// numbers that mean nothing.
fn padding(case: &Case, computed: &Computed, name: &str) -> Result<Option<Vec<bool>>, Failure> {
    let &[batch, tokens, _] = case.shape(name) else { return Ok(None) };
    let has = |mask: &str| case.shape(mask) == [batch, tokens];
    let of = |mask: &[f32]| Some(mask.iter().map(|m| *m == 0.0).collect());
    if !name.starts_with("out/") || name.contains("embeds") {
        return Ok(None);
    }
    match computed.get("out/attention_mask") {
        Some(mask) if has("out/attention_mask") => Ok(of(mask.values())),
        _ if has("in/attention_mask") => Ok(of(&case.golden.read_f32("in/attention_mask")?)),
        _ => Ok(None),
    }
}

/// Prints the table and counts the failures.
fn print(case: &Case, computed: &Computed) -> Result<usize, Failure> {
    let mut out = Output::new();
    let expected = case.expected();
    if expected.is_empty() {
        let what = "golden.safetensors: no out/*, grad/*, adamw/* or gen/* to compare with";
        return Err(Failure::input(what));
    }
    let width = expected.iter().map(String::len).max().unwrap_or(0).max(4);
    out.text(&format!(
        "{:width$}  {:>18}  {:>9}  {:>9}  {:>15}\n",
        "name", "shape", "abs", "rel", "limit"
    ))?;
    let (mut failed, mut ok, mut skipped) = (0, 0, 0);
    for name in &expected {
        let shape = format!("{:?}", case.shape(name));
        let Some(got) = computed.get(name) else {
            if is_inner(name) {
                skipped += 1;
            } else {
                failed += 1;
                out.text(&format!(
                    "{name:width$}  {shape:>18}  {:>9}  {:>9}  {:>15}  FAIL not computed\n",
                    "", "", ""
                ))?;
            }
            continue;
        };
        let want = case.golden.read_f32(name)?;
        let (abs_limit, rel_limit) = limits(name, &want);
        let fits = want.len() == got.elements();
        let (mut abs, mut rel, mut good) = (0.0_f32, 0.0_f32, fits);
        let padding = padding(case, computed, name)?;
        for (i, (g, w)) in got.values().iter().zip(&want).enumerate() {
            if padding.as_ref().is_some_and(|p| p[i * p.len() / want.len()]) {
                continue;
            }
            let difference = (g - w).abs();
            // A comparison with NaN is false, so NaN never passes.
            good &= difference <= abs_limit + rel_limit * w.abs();
            abs = abs.max(difference);
            rel = rel.max(difference / w.abs().max(1e-6));
        }
        let limit = format!("{abs_limit:.0e}+{rel_limit:.0e}");
        let verdict = match (good, fits) {
            (true, _) => "ok".to_owned(),
            (false, true) => "FAIL".to_owned(),
            (false, false) => format!("FAIL got {}", got.shape()),
        };
        ok += usize::from(good);
        failed += usize::from(!good);
        out.text(&format!(
            "{name:width$}  {shape:>18}  {abs:>9.1e}  {rel:>9.1e}  {limit:>15}  {verdict}\n"
        ))?;
    }
    out.text(&format!("{ok} ok, {failed} failed, {skipped} inner results not compared\n"))?;
    out.flush()?;
    Ok(failed)
}
