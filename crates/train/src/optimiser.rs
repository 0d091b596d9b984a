//! Optimisers: AdamW and SGD with momentum, one pass over memory for each parameter.

use crate::config::{OptimConfig, OptimName};
use crate::{Error, Result};
use ocelli_kernels::elementwise::sum_of_squares;
use ocelli_kernels::optimiser::{self as kernel, AdamW};
use ocelli_nn::Parameter;
use ocelli_nn::checkpoint::{Checkpoint, Dtype, TensorView};
use ocelli_tensor::{Gradients, Tensor};

/// A trainable parameter with the rules that it follows.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The parameter.
    pub parameter: Parameter,
    /// Factor on the learning rate of the run.
    pub lr_scale: f64,
    /// Whether weight decay applies.
    pub decays: bool,
}

#[derive(Debug)]
struct Slot {
    rule: Rule,
    /// First moment of AdamW, velocity of SGD.
    first: Vec<f32>,
    /// Second moment of AdamW; empty for SGD.
    second: Vec<f32>,
}

/// The state of an optimiser over all trainable parameters.
#[derive(Debug)]
pub struct Optimiser {
    config: OptimConfig,
    slots: Vec<Slot>,
    /// Steps taken.
    steps: u64,
}

impl Optimiser {
    /// With moments of zero.
    pub fn new(config: &OptimConfig, rules: Vec<Rule>) -> Self {
        let slots = rules.into_iter().map(|rule| {
            let n = rule.parameter.elements();
            let second = if config.name == OptimName::Adamw { n } else { 0 };
            Slot { rule, first: vec![0.0; n], second: vec![0.0; second] }
        });
        Self { config: config.clone(), slots: slots.collect(), steps: 0 }
    }

    /// Changes every parameter by its gradient, all gradients first scaled down to the configured
    /// global norm if they exceed it. Returns the norm before that; it is summed in f64 in a fixed
    /// order. A parameter without a gradient stays.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the first parameter whose gradient has NaN or infinity; nothing is
    /// changed then.
    pub fn step(&mut self, mut gradients: Gradients, lr: f64) -> Result<f64> {
        let mut taken: Vec<Option<Tensor>> = Vec::with_capacity(self.slots.len());
        let mut sum = 0.0;
        for slot in &self.slots {
            let grad = gradients.take(&slot.rule.parameter.tensor());
            let square = grad.as_ref().map_or(0.0, |g| sum_of_squares(g.values()));
            if !square.is_finite() {
                let parameter = slot.rule.parameter.name().to_owned();
                return Err(Error::NotFinite { what: "gradient", step: self.steps + 1, parameter });
            }
            sum += square;
            taken.push(grad);
        }
        let norm = sum.sqrt();
        let most = self.config.max_grad_norm.unwrap_or(f64::INFINITY);
        let grad_scale = if norm > most { (most / norm) as f32 } else { 1.0 };
        self.steps += 1;
        for (slot, grad) in self.slots.iter_mut().zip(taken) {
            let Some(grad) = grad else { continue };
            let lr = (lr * slot.rule.lr_scale) as f32;
            let Slot { rule, first, second } = slot;
            match self.config.name {
                OptimName::Adamw => {
                    let weight_decay =
                        if rule.decays { self.config.weight_decay as f32 } else { 0.0 };
                    let [b1, b2] = self.config.betas;
                    let settings = AdamW {
                        lr,
                        betas: (b1 as f32, b2 as f32),
                        eps: self.config.eps as f32,
                        weight_decay,
                        step: self.steps,
                        grad_scale,
                    };
                    rule.parameter
                        .update(|w| kernel::adamw(settings, w, grad.values(), first, second));
                }
                OptimName::Sgd => {
                    let momentum = self.config.momentum as f32;
                    rule.parameter
                        .update(|w| kernel::sgd(lr, momentum, grad_scale, w, grad.values(), first));
                }
            }
        }
        Ok(norm)
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The parameters that it changes.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.slots.iter().map(|slot| &slot.rule)
    }

    /// Bytes of the moments.
    pub fn bytes(&self) -> usize {
        self.slots.iter().map(|s| 4 * (s.first.len() + s.second.len())).sum()
    }

    /// Writes the moments with `write`, as `first.NAME` and `second.NAME`.
    pub(crate) fn save<T>(&self, write: impl FnOnce(&[TensorView<'_>]) -> T) -> T {
        let names: Vec<[String; 2]> = self.slots.iter().map(|s| names(&s.rule.parameter)).collect();
        let mut views = Vec::new();
        let shapes: Vec<_> = self.slots.iter().map(|s| s.rule.parameter.shape()).collect();
        for ((slot, [first, second]), shape) in self.slots.iter().zip(&names).zip(&shapes) {
            for (name, values) in [(first, &slot.first), (second, &slot.second)] {
                if !values.is_empty() {
                    let bytes = bytemuck::cast_slice(values);
                    views.push(TensorView { name, dtype: Dtype::F32, shape, bytes });
                }
            }
        }
        write(&views)
    }

    /// Continues after `steps` steps with moments that [`Optimiser::save`] wrote.
    pub(crate) fn restore(&mut self, file: &Checkpoint, steps: u64) -> Result<()> {
        for slot in &mut self.slots {
            let [first, second] = names(&slot.rule.parameter);
            for (name, values) in [(first, &mut slot.first), (second, &mut slot.second)] {
                if values.is_empty() {
                    continue;
                }
                let read = file.read_f32(&name)?;
                if read.len() != values.len() {
                    let (expected, found) = (values.len(), read.len());
                    return Err(Error::Moments { name, expected, found });
                }
                *values = read;
            }
        }
        self.steps = steps;
        Ok(())
    }
}

fn names(parameter: &Parameter) -> [String; 2] {
    ["first", "second"].map(|kind| format!("{kind}.{}", parameter.name()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use ocelli_nn::{Builder, Init};

    fn one(config: &OptimConfig) -> (Parameter, Optimiser) {
        let b = Builder::random(1);
        let parameter = b.parameter("w", &[2], Init::Constant(1.0));
        let rule = Rule { parameter: parameter.clone(), lr_scale: 0.5, decays: true };
        (parameter, Optimiser::new(config, vec![rule]))
    }

    /// The gradient of `Σ grad * w`.
    fn gradients(parameter: &Parameter, grad: [f32; 2]) -> Gradients {
        let grad = Tensor::from_slice(&grad, &[2]).unwrap();
        parameter.tensor().mul(&grad).unwrap().sum().unwrap().backward().unwrap()
    }

    #[test]
    fn a_long_gradient_is_cut_to_the_norm() {
        let config = OptimConfig {
            name: OptimName::Sgd,
            max_grad_norm: Some(1.0),
            momentum: 0.0,
            weight_decay: 0.0,
            ..OptimConfig::default()
        };
        let (parameter, mut optimiser) = one(&config);
        let norm = optimiser.step(gradients(&parameter, [3.0, 4.0]), 1.0).unwrap();
        assert!((norm - 5.0).abs() < 1e-6);
        // Half of the run's rate: 1 - 0.5 * 3 / 5 and 1 - 0.5 * 4 / 5.
        let tensor = parameter.tensor();
        assert!((tensor.values()[0] - 0.7).abs() < 1e-6 && (tensor.values()[1] - 0.6).abs() < 1e-6);
    }

    #[test]
    fn a_gradient_that_is_no_number_stops_the_run_by_name() {
        let (parameter, mut optimiser) = one(&OptimConfig::default());
        let error = optimiser.step(gradients(&parameter, [f32::NAN, 0.0]), 1.0).unwrap_err();
        assert!(
            error.to_string().contains("step 1") && error.to_string().contains(" w"),
            "{error}"
        );
        assert_eq!(parameter.tensor().values(), [1.0, 1.0]);
    }

    #[test]
    fn saved_moments_continue_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("optimizer.safetensors");
        let config = OptimConfig::default();
        let (straight, mut optimiser) = one(&config);
        let (resumed, mut before) = one(&config);
        for i in 0..6 {
            let grad = [i as f32 - 2.0, 0.3];
            optimiser.step(gradients(&straight, grad), 0.1).unwrap();
            if i == 3 {
                let metadata = std::collections::BTreeMap::new();
                before
                    .save(|t| ocelli_nn::checkpoint::save_safetensors(&path, t, &metadata))
                    .unwrap();
                let rules = before.rules().cloned().collect();
                let steps = before.steps();
                before = Optimiser::new(&config, rules);
                before.restore(&Checkpoint::open(&path).unwrap(), steps).unwrap();
            }
            before.step(gradients(&resumed, grad), 0.1).unwrap();
        }
        assert_eq!(straight.tensor().values(), resumed.tensor().values());
    }
}
