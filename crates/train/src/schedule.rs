//! The learning rate over the steps of a run.

use crate::config::{ScheduleConfig, ScheduleName};
use std::f64::consts::PI;

/// Linear warm-up from 0, then a curve down to the least rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    name: ScheduleName,
    peak: f64,
    least: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// For a run of `total_steps` with `peak` as its highest rate.
    pub fn new(config: &ScheduleConfig, peak: f64, total_steps: u64) -> Self {
        let by_ratio = (config.warmup_ratio * total_steps as f64).round() as u64;
        let warmup_steps = config.warmup_steps.unwrap_or(by_ratio);
        Self { name: config.name, peak, least: config.min_lr, warmup_steps, total_steps }
    }

    /// The rate of step `step`, from 0. During warm-up `peak (step + 1) / warmup_steps`; then with
    /// `t` in [0, 1] from the end of warm-up to the end of the run: cosine
    /// `least + (peak - least) (1 + cos πt) / 2`, linear `peak + (least - peak) t`, or `peak`.
    ///
    /// ```
    /// use ocelli_train::{Schedule, config::{ScheduleConfig, ScheduleName}};
    /// let config = ScheduleConfig { name: ScheduleName::Cosine, warmup_steps: Some(10), ..Default::default() };
    /// let schedule = Schedule::new(&config, 1.0, 110);
    /// assert_eq!([0, 4, 9, 10, 60].map(|s| (schedule.at(s) * 100.0).round()), [10.0, 50.0, 100.0, 100.0, 50.0]);
    /// ```
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let rest = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let t = ((step - self.warmup_steps) as f64 / rest as f64).min(1.0);
        match self.name {
            ScheduleName::Cosine => {
                self.least + (self.peak - self.least) * 0.5 * (1.0 + (PI * t).cos())
            }
            ScheduleName::Linear => self.peak + (self.least - self.peak) * t,
            ScheduleName::Constant => self.peak,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_curve_ends_at_its_least_rate() {
        for (name, last) in [
            (ScheduleName::Cosine, 0.1),
            (ScheduleName::Linear, 0.1),
            (ScheduleName::Constant, 1.0),
        ] {
            let config =
                ScheduleConfig { name, warmup_ratio: 0.1, min_lr: 0.1, warmup_steps: None };
            let schedule = Schedule::new(&config, 1.0, 1000);
            assert!((schedule.at(49) - 0.5).abs() < 1e-12);
            assert!((schedule.at(100) - 1.0).abs() < 1e-12);
            assert!((schedule.at(1000) - last).abs() < 1e-12);
            assert!((schedule.at(5000) - last).abs() < 1e-12);
        }
    }
}
