//! Gradients of the loss, and the parameters after a few optimiser steps.

use super::Computed;
use super::case::Case;
use crate::failure::Failure;
use ocelli_kernels::optimiser::{AdamW, adamw};
use ocelli_models::Opened;
use ocelli_nn::{Names, Parameter};
use ocelli_tensor::{Gradients, Tensor};
use serde_json::Value;

type Loss<'a> = dyn Fn() -> Result<Option<Tensor>, Failure> + 'a;

/// Computes `grad/*` and `adamw/*` if the case has any.
pub(super) fn compute(
    case: &Case,
    opened: &Opened,
    loss: &Loss,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let wants = |kind: &str| case.expected().iter().any(|n| n.starts_with(kind));
    if !wants("grad/") && !wants("adamw/") {
        return Ok(());
    }
    let Some(value) = loss()? else { return Ok(()) };
    let grads = value.backward()?;
    put_gradients("grad/", opened, &grads, computed)?;
    put_words(opened, &grads, computed);
    if !wants("adamw/") {
        return Ok(());
    }
    let s = &case.settings["adamw"];
    let number = |field: &str, default: f64| s[field].as_f64().unwrap_or(default) as f32;
    let beta = |i: usize, default: f64| s["betas"][i].as_f64().unwrap_or(default) as f32;
    let steps = s["steps"].as_u64().unwrap_or(3);
    // Parts that the reference kept as they were, by parts of their names.
    let frozen = s["frozen_prefixes"].as_array();
    let frozen: Vec<&str> = frozen.into_iter().flatten().filter_map(Value::as_str).collect();
    // Those prefixes are of the library's own names, which may differ from the file's; but what got a
    // gradient is listed by the latter.
    let learned = case.settings["grad_norms"].as_object();
    let learns = |p: &&Parameter| {
        let theirs = Names::stored(&opened.names, p.name());
        let is_frozen = |name: &String| frozen.iter().any(|part| name.contains(part));
        !theirs.iter().any(is_frozen)
            && learned.is_none_or(|l| theirs.iter().any(|name| l.contains_key(name)))
    };
    let parameters: Vec<&Parameter> = opened.parameters.trainable().filter(learns).collect();
    let mut moments: Vec<[Vec<f32>; 2]> =
        parameters.iter().map(|p| [vec![0.0; p.elements()], vec![0.0; p.elements()]]).collect();
    let mut grads = grads;
    for step in 1..=steps {
        if step > 1 {
            let Some(value) = loss()? else { return Ok(()) };
            grads = value.backward()?;
        }
        let settings = AdamW {
            lr: number("lr", 1e-3),
            betas: (beta(0, 0.9), beta(1, 0.98)),
            eps: number("eps", 1e-6),
            weight_decay: number("weight_decay", 0.05),
            step,
            grad_scale: 1.0,
        };
        for (p, [m, v]) in parameters.iter().zip(&mut moments) {
            let Some(grad) = grads.take(&p.tensor()) else { continue };
            p.update(|weights| adamw(settings, weights, grad.values(), m, v));
        }
    }
    put("adamw/", opened, |p| Some(p.tensor().detach()), computed)
}

/// Stores gradients under the names of the checkpoint's family.
pub(super) fn put_gradients(
    kind: &str,
    opened: &Opened,
    grads: &Gradients,
    computed: &mut Computed,
) -> Result<(), Failure> {
    put(kind, opened, |p| grads.get(&p.tensor()).map(Tensor::detach), computed)
}

/// `grad/input_embeddings`: the gradient of a language model's word table under another name.
fn put_words(opened: &Opened, grads: &Gradients, computed: &mut Computed) {
    if let Some(table) = opened.parameters.get("language.word")
        && let Some(grad) = grads.get(&table.tensor())
    {
        computed.insert("grad/input_embeddings".to_owned(), grad.detach());
    }
}

/// Stores the gradient of the input `name` if the case asks for it.
pub(super) fn of_input(
    case: &Case,
    name: &str,
    loss: &mut dyn FnMut(&Tensor) -> Result<Option<Tensor>, Failure>,
    computed: &mut Computed,
) -> Result<(), Failure> {
    let (result, input) = (format!("grad/in.{name}"), format!("in/{name}"));
    let (true, Some(value)) = (case.wants(&result), case.tensor(&input)?) else { return Ok(()) };
    let leaf = value.leaf();
    if let Some(loss) = loss(&leaf)?
        && let Some(grad) = loss.backward()?.get(&leaf)
    {
        computed.insert(result, grad.detach());
    }
    Ok(())
}

/// Stores values of parameters under the names of the checkpoint's family.
fn put(
    kind: &str,
    opened: &Opened,
    values: impl FnMut(&Parameter) -> Option<Tensor>,
    computed: &mut Computed,
) -> Result<(), Failure> {
    for (name, shape, values) in opened.parameters.export(&opened.names, values) {
        computed.insert(format!("{kind}{name}"), Tensor::from_slice(&values, &shape)?);
    }
    Ok(())
}
