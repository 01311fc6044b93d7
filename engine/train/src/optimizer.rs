//! AdamW with a schedule of its rate and gradients of bounded norm.

use ocelli_engine::{Ctx, Error, Result};
use ocelli_kernels::ops::{AdamW, AdamWStep, SumSquares};
use ocelli_kernels::{DType, Storage};
use serde::{Deserialize, Serialize};

use crate::parameters::{Parameters, download, flat};

/// How the learning rate goes after the steps that warm it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls to zero in a line.
    Linear,
    /// It falls to zero as half a wave of the cosine.
    #[default]
    Cosine,
}

/// What the optimizer is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWOptions {
    /// Highest learning rate.
    pub rate: f64,
    /// Decays of the moments.
    pub betas: [f64; 2],
    /// Weight decay of matrices.
    pub decay: f64,
    /// Largest norm of the gradient of all parameters; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// How the rate goes.
    pub schedule: Schedule,
    /// Steps on which it rises from zero.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
}

impl AdamWOptions {
    /// The rate of step `step`, counted from 1: it rises as `step / warmup`; of the steps after, the first has the highest rate, and a step
    /// after the last one would have none.
    #[must_use]
    pub fn rate_at(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.rate * step as f64 / self.warmup as f64;
        }
        let left = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup - 1) as f64 / left).min(1.0);
        self.rate
            * match self.schedule {
                Schedule::Constant => 1.0,
                Schedule::Linear => 1.0 - done,
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct Stepped {
    /// Norm of the gradient before it was clipped.
    pub norm: f64,
    /// Learning rate.
    pub rate: f64,
}

/// Moments of the parameters.
pub struct Optimizer {
    /// What it was told.
    pub options: AdamWOptions,
    m: Storage,
    v: Storage,
    /// Steps done.
    pub steps: u64,
}

impl Optimizer {
    /// At its first step.
    ///
    /// # Errors
    /// If there is no memory for the moments.
    pub fn new(cx: &mut Ctx, parameters: &Parameters, options: AdamWOptions) -> Result<Self> {
        let bytes = parameters.buffer_len();
        Ok(Self { options, m: cx.stream().alloc(bytes)?, v: cx.stream().alloc(bytes)?, steps: 0 })
    }

    /// The norm of the gradient of all parameters.
    ///
    /// # Errors
    /// If the sums cannot be computed.
    pub fn norm(&self, cx: &mut Ctx, parameters: &Parameters) -> Result<f64> {
        let mut total = 0.0;
        for (range, ()) in parameters.runs(|parameter| parameter.trained.then_some(())) {
            total += cx.scope(|cx| {
                let x = parameters.grads(&range)?;
                let sums = cx.alloc(&[x.len().div_ceil(SumSquares::BLOCK)], DType::F32)?;
                let out = cx.view(&sums)?;
                cx.exec("norm of the gradient", &SumSquares { x, out: out.clone() })?;
                Ok(download(cx, &out)?.into_iter().map(f64::from).sum::<f64>())
            })?;
        }
        Ok(total.sqrt())
    }

    /// Takes a step by the gradients, which are zero then.
    ///
    /// # Errors
    /// If the gradient is not finite: the parameters are as they were, and the error names the first parameter.
    pub fn step(&mut self, cx: &mut Ctx, parameters: &Parameters) -> Result<Stepped> {
        let norm = self.norm(cx, parameters)?;
        if !norm.is_finite() {
            return Err(Error::Train(self.not_finite(cx, parameters)));
        }
        let (number, rate) = (self.steps + 1, self.options.rate_at(self.steps + 1));
        let clip = self.options.clip.filter(|&clip| norm > clip);
        let scale = clip.map_or(1.0, |clip| clip / (norm + 1e-6)) as f32;
        for (range, decays) in parameters.runs(|parameter| parameter.trained.then(|| parameter.decays())) {
            let decay = if decays { self.options.decay } else { 0.0 };
            let op = AdamW {
                param: parameters.values(&range)?,
                grad: parameters.grads(&range)?,
                m: flat(&self.m, &range)?,
                v: flat(&self.v, &range)?,
                step: AdamWStep { scale, ..AdamWStep::new(number, rate, self.options.betas, decay) },
            };
            cx.exec("optimizer", &op)?;
        }
        self.steps = number;
        Ok(Stepped { norm, rate })
    }

    /// Says which parameter's gradient is the first that is not finite.
    #[must_use]
    pub fn not_finite(&self, cx: &mut Ctx, parameters: &Parameters) -> String {
        let bad = parameters.all().iter().filter(|parameter| parameter.trained).find(|parameter| {
            let values = parameters.grads(&parameter.bytes).and_then(|view| download(cx, &view));
            values.is_ok_and(|values| values.iter().any(|value| !value.is_finite()))
        });
        match bad {
            Some(parameter) => format!(
                "the gradient of `{}` is not finite: a smaller learning rate may help, or the weights are broken",
                parameter.name
            ),
            None => {
                "the norm of the gradient is beyond what f32 holds: a smaller learning rate may help".into()
            }
        }
    }

    /// The parameter with the largest gradient, and the norm of that.
    #[must_use]
    pub fn steepest(&self, cx: &mut Ctx, parameters: &Parameters) -> Option<(String, f64)> {
        let trained = parameters.all().iter().filter(|parameter| parameter.trained);
        let norms = trained.filter_map(|parameter| {
            let values = download(cx, &parameters.grads(&parameter.bytes).ok()?).ok()?;
            let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            Some((parameter.name.clone(), norm))
        });
        norms.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Moments and parameters as they are, for a run that goes on later: bytes of parameters, first and second moments.
    pub(crate) fn state(&self, parameters: &Parameters) -> [Storage; 3] {
        [parameters.trained().values, self.m.clone(), self.v.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        let mut options = AdamWOptions {
            rate: 2.0,
            betas: [0.9, 0.999],
            decay: 0.0,
            clip: None,
            schedule: Schedule::Linear,
            warmup: 4,
            steps: 12,
        };
        let rates = |options: &AdamWOptions| [1, 4, 5, 9, 13].map(|step| options.rate_at(step));
        assert_eq!(rates(&options), [0.5, 2.0, 2.0, 1.0, 0.0]);
        options.schedule = Schedule::Cosine;
        assert!((options.rate_at(9) - 1.0).abs() < 1e-12 && options.rate_at(13).abs() < 1e-12);
        options.schedule = Schedule::Constant;
        assert_eq!(rates(&options), [0.5, 2.0, 2.0, 2.0, 2.0]);
        options.warmup = 0;
        assert_eq!(options.rate_at(1), 2.0);
    }
}
