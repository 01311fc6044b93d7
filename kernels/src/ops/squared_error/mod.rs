//! The mean of squared distances of rows, and the gradient.
//!
//! `loss[i] = weights[i] / d * sum_j (x[i, j] - target[i, j])^2` and `dx[i, j] = scale * 2 weights[i] / d * (x[i, j] - target[i, j])`; without
//! weights they are 1, and a row of weight 0 has neither, whatever it holds.

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

/// `x, target: [rows, d]  weights: [rows]?  ->  loss: [rows]  dx: [rows, d]`, all f32.
#[derive(Clone, Debug)]
pub struct SquaredError {
    /// What was found, `[rows, d]`.
    pub x: View,
    /// What it is held against, `[rows, d]`.
    pub target: View,
    /// Weight of each row, `[rows]`.
    pub weights: Option<View>,
    /// Factor of the gradient.
    pub scale: f32,
    /// Loss of each row, `[rows]`.
    pub loss: View,
    /// Gradient of `x`, `[rows, d]`, which is written; may be the very elements of `x`.
    pub dx: Option<View>,
}

/// The key of a [`SquaredError`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SquaredErrorSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
    /// Whether rows have weights.
    pub weights: bool,
    /// Whether the gradient is wanted.
    pub dx: bool,
}

impl Op for SquaredError {
    const NAME: &'static str = "squared_error";
    type Spec = SquaredErrorSpec;

    fn spec(&self) -> Result<SquaredErrorSpec, ShapeError> {
        let Self { x, target, weights, loss, dx, .. } = self;
        check::rank("x", x, 2)?;
        check::dtype("x", x, DType::F32)?;
        check::dtype("target", target, DType::F32)?;
        check::shape("target", target, x.shape())?;
        if let Some(weights) = weights {
            check::dtype("weights", weights, DType::F32)?;
            check::shape("weights", weights, &[x.size(0)])?;
        }
        let fixed = || weights.iter().map(|view| ("weights", view)).chain([("target", target)]);
        check::dtype("loss", loss, DType::F32)?;
        check::shape("loss", loss, &[x.size(0)])?;
        check::output("loss", loss, fixed().chain([("x", x)]))?;
        if let Some(dx) = dx {
            check::dtype("dx", dx, DType::F32)?;
            check::shape("dx", dx, x.shape())?;
            check::output("dx", dx, fixed().chain([("loss", loss)]))?;
            if !dx.same_elements(x) {
                check::output("dx", dx, [("x", x)])?;
            }
        }
        let (rows, d) = (bucket(x.size(0)), x.size(1) as u32);
        Ok(SquaredErrorSpec { rows, d, weights: weights.is_some(), dx: dx.is_some() })
    }

    fn cost(&self) -> Cost {
        let of = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        let read = self.x.bytes() + self.target.bytes() + of(&self.weights);
        Cost { flops: 4 * self.x.len() as u64, read, written: of(&self.dx) + self.loss.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.target);
        if let Some(weights) = &mut self.weights {
            visit(Access::In, weights);
        }
        visit(Access::Out, &mut self.loss);
        if let Some(dx) = &mut self.dx {
            visit(Access::Out, dx);
        }
    }

    fn of_spec(spec: &SquaredErrorSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let shape = [spec.rows as usize, spec.d as usize];
        let weights = spec.weights.then(|| operands.floats(&shape[..1], &|row| (row % 2) as f32));
        Ok(Self {
            x: operands.activations(&shape, DType::F32)?,
            target: operands.activations(&shape, DType::F32)?,
            weights: weights.transpose()?,
            scale: 1.0 / shape[0].max(1) as f32,
            loss: operands.output(&shape[..1], DType::F32)?,
            dx: spec.dx.then(|| operands.output(&shape, DType::F32)).transpose()?,
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
impl crate::wgpu::WgpuOp for SquaredError {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for SquaredError {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
