//! What a decoder writes, in the form in which references store it.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_models::generate::{
    Answer, Beams, Cache, Decoder, EarlyStopping, Flow, Prompt, Rows, Settings, Strategy, generate,
};
use ocelli_models::language::causal::CausalModel;
use ocelli_tensor::{Tensor, no_grad};
use regex::Regex;

/// Prompts as a case stores them, padded to one length.
pub(super) struct Stored {
    /// `[rows, width]`, padding included.
    pub(super) ids: Vec<u32>,
    pub(super) width: usize,
    /// The ids of each row that are not padding.
    pub(super) rows: Vec<Vec<u32>>,
}

impl Stored {
    /// The prompts `gen/input_ids` with `gen/attention_mask`, if the case has any.
    pub(super) fn read(case: &Case) -> Result<Option<Self>, Failure> {
        let Some(ids) = case.ids("gen/input_ids")? else { return Ok(None) };
        let mask = case.ids("gen/attention_mask")?.unwrap_or_else(|| vec![1; ids.len()].into());
        let width = ids.len() / case.rows("gen/input_ids").max(1);
        let real = |(ids, mask): (&[u32], &[u32])| {
            ids.iter().zip(mask).filter(|(_, m)| **m != 0).map(|(id, _)| *id).collect()
        };
        let rows = ids.chunks(width.max(1)).zip(mask.chunks(width.max(1))).map(real).collect();
        Ok(Some(Self { ids: ids.to_vec(), width, rows }))
    }
}

/// Ids that end an answer: those of `generation_config.json`, or else of `config.json`.
pub(super) fn eos(case: &Case) -> Vec<u32> {
    let ids = ["generation_config.json", "config.json"]
        .iter()
        .find_map(|file| case.value(file, "eos_token_id"))
        .unwrap_or_default();
    let list = ids.as_array().cloned().unwrap_or_else(|| vec![ids]);
    list.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Prompts as stored and behind them the answers, padded to the longest with the padding id: what the
/// libraries return. A prompt of width 0 leaves the answers alone.
pub(super) fn padded(prompts: &[u32], width: usize, answers: &[Answer], pad: u32) -> Tensor {
    let longest = answers.iter().map(|a| a.ids.len()).max().unwrap_or(0);
    let mut all = Vec::with_capacity(answers.len() * (width + longest));
    for (row, answer) in answers.iter().enumerate() {
        all.extend(prompts[row * width..(row + 1) * width].iter().map(|id| *id as f32));
        let padding = std::iter::repeat_n(pad, longest - answer.ids.len());
        all.extend(answer.ids.iter().copied().chain(padding).map(|id| id as f32));
    }
    let shape = [answers.len(), width + longest];
    Tensor::from_slice(&all, &shape).expect("each row has its prompt, its answer and padding")
}

/// How the result `name` of a case is written: `output_ids` greedily, `eos_stop_ids` so with the end
/// token that the settings name, `beam5_ids` with five beams. The longest answer follows from the
/// shape that the case names.
pub(super) fn settings(case: &Case, name: &str, width: usize) -> Settings {
    let longest = |name: &str| case.shape(name).last().copied().unwrap_or(0).saturating_sub(width);
    let beams = Regex::new(r"beam(\d+)").expect("the pattern is fixed");
    let beams = beams.captures(name).and_then(|c| c[1].parse().ok());
    if let Some(width) = beams {
        let early_stopping = EarlyStopping::Heuristic;
        let beams = Beams { width, length_penalty: 1.0, early_stopping };
        let greedy = Settings::greedy(longest(name), &eos(case));
        return Settings { strategy: Strategy::Beam(beams), ..greedy };
    }
    match case.id("eos_stop_token_id").filter(|_| name.ends_with("eos_stop_ids")) {
        // Short if all rows ended early; the greedy run says how far they might have gone.
        Some(end) => Settings::greedy(longest(&name.replace("eos_stop", "output")), &[end]),
        None => Settings::greedy(longest(name), &eos(case)),
    }
}

/// What `model` writes behind a prompt where the case says so: as many ids as `name` holds, unless one of `eos`
/// comes first.
pub(super) fn greedy(
    case: &Case,
    name: &str,
    model: &dyn CausalModel,
    prompt: Prompt,
    eos: &[u32],
) -> Result<Tensor, Failure> {
    let longest = case.shape(name).last().copied().unwrap_or(0);
    let settings = Settings::greedy(longest, eos);
    let mut cache = model.new_cache(1);
    let answers = generate(model, &[prompt], &mut cache, &settings, &mut |_, _| Flow::Continue)?;
    let ids: Vec<f32> = answers[0].ids.iter().map(|id| *id as f32).collect();
    Ok(Tensor::from_slice(&ids, &[ids.len()])?)
}

/// Computes every `gen/*` of a decoder that has prompts only.
pub(super) fn outputs(
    case: &Case,
    decoder: &dyn Decoder,
    new_cache: &dyn Fn(usize) -> Cache,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let Some(stored) = Stored::read(case)? else { return Ok(()) };
    let prompts: Vec<Prompt> =
        stored.rows.iter().map(|ids| Prompt::text(decoder, ids)).collect::<Result<_, _>>()?;
    for name in case.expected().iter().filter(|n| n.starts_with("gen/")) {
        let settings = settings(case, name, stored.width);
        let mut cache = new_cache(prompts.len());
        let go_on = &mut |_, _| Flow::Continue;
        let answers = generate(decoder, &prompts, &mut cache, &settings, go_on)?;
        let pad = case.id("pad_token_id").or_else(|| eos(case).first().copied()).unwrap_or(0);
        computed.insert(name.clone(), padded(&stored.ids, stored.width, &answers, pad));
    }
    Ok(())
}

/// Computes `cache/step_logits`: logits after the first tokens in one pass, and then after each
/// further one.
pub(super) fn step_logits(
    case: &Case,
    decoder: &dyn Decoder,
    mut cache: Cache,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let (Some(ids), &[_, steps, _]) =
        (case.ids("cache/input_ids")?, case.shape("cache/step_logits"))
    else {
        return Ok(());
    };
    // As many steps as results, so the rest goes first.
    let mut at = 0;
    let mut logits = Vec::with_capacity(steps);
    no_grad(|| {
        while at < ids.len() {
            let next = if at == 0 { (ids.len() + 1).saturating_sub(steps).max(1) } else { at + 1 };
            let rows = Rows::join(&[decoder.embed(&ids[at..next])?])?;
            logits.push(decoder.advance(&rows, &mut cache)?);
            at = next;
        }
        let all = Tensor::cat(&logits.iter().collect::<Vec<_>>(), 0)?;
        computed.insert("cache/step_logits".to_owned(), all);
        Ok(())
    })
}
