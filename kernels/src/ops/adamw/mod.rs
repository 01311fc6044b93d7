//! A step of AdamW: decoupled weight decay, and moments of the gradient with their bias corrected.
//!
//! With `g` the scaled gradient: `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `p = p (1 - rate decay) - rate / correction1 * m / (sqrt(v / correction2) + eps)`; a correction is `1 - beta^step`. The gradient is zero then,
//! for the next one to be added up. After Loshchilov and
//! Hutter, "Decoupled weight decay regularization", 2019, in the order of operations of `torch.optim.AdamW`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Numbers of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Share of a parameter that it loses at a rate of 1.
    pub decay: f32,
    /// `1 - beta1^step`, steps counted from 1.
    pub correction1: f32,
    /// `1 - beta2^step`.
    pub correction2: f32,
    /// Factor of the gradient: what clipping leaves of it.
    pub scale: f32,
}

impl AdamWStep {
    /// Step `step`, counted from 1, with the usual decays of moments.
    #[must_use]
    pub fn new(step: u64, rate: f64, betas: [f64; 2], decay: f64) -> Self {
        let correction = |beta: f64| (1.0 - beta.powf(step as f64)) as f32;
        Self {
            rate: rate as f32,
            beta1: betas[0] as f32,
            beta2: betas[1] as f32,
            eps: 1e-8,
            decay: decay as f32,
            correction1: correction(betas[0]),
            correction2: correction(betas[1]),
            scale: 1.0,
        }
    }
}

/// `param, grad, m, v: [n]` in place, all dense f32.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Parameters `[n]`.
    pub param: View,
    /// Their gradients `[n]`; zeros afterwards.
    pub grad: View,
    /// First moments `[n]`.
    pub m: View,
    /// Second moments `[n]`.
    pub v: View,
    /// The step.
    pub step: AdamWStep,
}

/// The key of an [`AdamW`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamWSpec {
    /// Parameters, bucketed.
    pub n: u32,
}

impl Op for AdamW {
    const NAME: &'static str = "adamw";
    type Spec = AdamWSpec;

    fn spec(&self) -> Result<AdamWSpec, ShapeError> {
        let Self { param, grad, m, v, .. } = self;
        check::rank("param", param, 1)?;
        let all = [("param", param), ("grad", grad), ("m", m), ("v", v)];
        for (name, view) in all {
            check::dtype(name, view, DType::F32)?;
            check::shape(name, view, param.shape())?;
        }
        for (i, (name, view)) in all.into_iter().enumerate() {
            check::output(name, view, all.into_iter().take(i))?;
        }
        Ok(AdamWSpec { n: bucket(param.len()) })
    }

    fn cost(&self) -> Cost {
        let bytes = self.param.bytes();
        Cost { flops: 14 * self.param.len() as u64, read: 4 * bytes, written: 4 * bytes }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        for view in [&mut self.param, &mut self.grad, &mut self.m, &mut self.v] {
            visit(Access::InOut, view);
        }
    }

    fn of_spec(spec: &AdamWSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let n = [spec.n as usize];
        Ok(Self {
            param: operands.output(&n, DType::F32)?,
            grad: operands.output(&n, DType::F32)?,
            m: operands.output(&n, DType::F32)?,
            v: operands.output(&n, DType::F32)?,
            step: AdamWStep::new(10, 1e-3, [0.9, 0.999], 0.01),
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}

#[cfg(feature = "wgpu")]
impl crate::wgpu::WgpuOp for AdamW {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for AdamW {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
