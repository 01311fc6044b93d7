//! How far a student's answers are from a teacher's, and the gradient, in one pass over both logits.
//!
//! With `p = softmax(teacher / T)` and `q = softmax(x / T)`: `loss[i] = T^2 sum_j p_j ln(p_j / q_j)`, and `dx[i, j]` is, or is added,
//! `scale * T * (q_j - p_j)`; a row with a negative label has neither. The factor `T^2` keeps gradients at the size of those of a loss of
//! right classes, to which they are added. After Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.

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

/// `x, teacher: [rows, classes]  labels: [rows]  ->  loss: [rows]  dx: [rows, classes]`.
#[derive(Clone, Debug)]
pub struct DistillLoss {
    /// Logits of the student, f32 `[rows, classes]`.
    pub x: View,
    /// Logits of the teacher, f32 `[rows, classes]`; minus infinity is a class that it never gives.
    pub teacher: View,
    /// i32 `[rows]`: a negative number for a row without a loss; others mean nothing here.
    pub labels: View,
    /// The temperature, above 0.
    pub temperature: f32,
    /// Factor of the gradient.
    pub scale: f32,
    /// Loss of each row in nats, times the square of the temperature, f32 `[rows]`.
    pub loss: View,
    /// Gradient of the student's logits, f32 `[rows, classes]`.
    pub dx: Option<View>,
    /// Whether the gradient is added to what `dx` holds, such as that of the loss of right classes; else it is written.
    pub add: bool,
}

/// The key of a [`DistillLoss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct DistillLossSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Classes.
    pub classes: u32,
    /// Whether the gradient is wanted.
    pub dx: bool,
    /// Whether it is added.
    pub add: bool,
}

impl Op for DistillLoss {
    const NAME: &'static str = "distill_loss";
    type Spec = DistillLossSpec;

    fn spec(&self) -> Result<DistillLossSpec, ShapeError> {
        let Self { x, teacher, labels, temperature, loss, dx, add, .. } = self;
        check::rank("x", x, 2)?;
        check::dtype("x", x, DType::F32)?;
        check::dtype("teacher", teacher, DType::F32)?;
        check::shape("teacher", teacher, x.shape())?;
        check::dtype("labels", labels, DType::I32)?;
        check::shape("labels", labels, &[x.size(0)])?;
        if !(temperature.is_finite() && *temperature > 0.0) {
            return Err(ShapeError::mismatch("temperature", "a number above 0", temperature));
        }
        let inputs = [("x", x), ("teacher", teacher), ("labels", labels)];
        check::dtype("loss", loss, DType::F32)?;
        check::shape("loss", loss, &[x.size(0)])?;
        check::output("loss", loss, inputs)?;
        if let Some(dx) = dx {
            check::dtype("dx", dx, DType::F32)?;
            check::shape("dx", dx, x.shape())?;
            check::output("dx", dx, inputs.into_iter().chain([("loss", loss)]))?;
        }
        let (rows, classes) = (bucket(x.size(0)), x.size(1) as u32);
        Ok(DistillLossSpec { rows, classes, dx: dx.is_some(), add: *add && dx.is_some() })
    }

    fn cost(&self) -> Cost {
        let of_dx = self.dx.as_ref().map_or(0, View::bytes);
        let read = self.x.bytes() + self.teacher.bytes() + if self.add { of_dx } else { 0 };
        Cost { flops: 28 * self.x.len() as u64, read, written: of_dx + self.loss.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.teacher);
        visit(Access::In, &mut self.labels);
        visit(Access::Out, &mut self.loss);
        if let Some(dx) = &mut self.dx {
            visit(if self.add { Access::InOut } else { Access::Out }, dx);
        }
    }

    fn of_spec(spec: &DistillLossSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let shape = [spec.rows as usize, spec.classes as usize];
        let dx = match (spec.dx, spec.add) {
            (false, _) => None,
            (true, true) => Some(operands.activations(&shape, DType::F32)?),
            (true, false) => Some(operands.output(&shape, DType::F32)?),
        };
        Ok(Self {
            x: operands.activations(&shape, DType::F32)?,
            teacher: operands.activations(&shape, DType::F32)?,
            labels: operands.ints(&shape[..1], &|_| 0)?,
            temperature: 2.0,
            scale: 1.0 / shape[0].max(1) as f32,
            loss: operands.output(&shape[..1], DType::F32)?,
            dx,
            add: spec.add,
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
impl crate::wgpu::WgpuOp for DistillLoss {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for DistillLoss {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
