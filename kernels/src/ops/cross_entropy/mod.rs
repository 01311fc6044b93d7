//! The loss of a classifier and its gradient, in one pass over the logits.
//!
//! `loss[i] = ln sum_j exp(x[i, j]) - x[i, labels[i]]` and `dx[i, j] = scale * (exp(x[i, j]) / sum_j exp(x[i, j]) - [j = labels[i]])`;
//! a row with a negative label has neither: zeros.

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

/// `x: [rows, classes]  labels: [rows]  ->  loss: [rows]  dx: [rows, classes]`.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// Logits, f32 `[rows, classes]`.
    pub x: View,
    /// i32 `[rows]`: the right class, or a negative number for none; one beyond the classes is an error.
    pub labels: View,
    /// Factor of the gradient.
    pub scale: f32,
    /// Loss of each row in nats, f32 `[rows]`.
    pub loss: View,
    /// Gradient of the logits, f32 `[rows, classes]`, which is written; may be the very elements of `x`.
    pub dx: Option<View>,
}

/// The key of a [`CrossEntropy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct CrossEntropySpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Classes.
    pub classes: u32,
    /// Whether the gradient is wanted.
    pub dx: bool,
}

impl Op for CrossEntropy {
    const NAME: &'static str = "cross_entropy";
    type Spec = CrossEntropySpec;

    fn spec(&self) -> Result<CrossEntropySpec, ShapeError> {
        let Self { x, labels, loss, dx, .. } = self;
        check::rank("x", x, 2)?;
        check::dtype("x", x, DType::F32)?;
        check::dtype("labels", labels, DType::I32)?;
        check::shape("labels", labels, &[x.size(0)])?;
        check::dtype("loss", loss, DType::F32)?;
        check::shape("loss", loss, &[x.size(0)])?;
        check::output("loss", loss, [("x", x), ("labels", labels)])?;
        if let Some(dx) = dx {
            check::dtype("dx", dx, DType::F32)?;
            check::shape("dx", dx, x.shape())?;
            check::output("dx", dx, [("labels", labels), ("loss", loss)])?;
            if !dx.same_elements(x) {
                check::output("dx", dx, [("x", x)])?;
            }
        }
        Ok(CrossEntropySpec { rows: bucket(x.size(0)), classes: x.size(1) as u32, dx: dx.is_some() })
    }

    fn cost(&self) -> Cost {
        let written = self.dx.as_ref().map_or(0, View::bytes);
        Cost { flops: 12 * self.x.len() as u64, read: self.x.bytes(), written: written + self.loss.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.labels);
        visit(Access::Out, &mut self.loss);
        if let Some(dx) = &mut self.dx {
            visit(Access::Out, dx);
        }
    }

    fn of_spec(spec: &CrossEntropySpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, classes) = (spec.rows as usize, spec.classes as usize);
        Ok(Self {
            x: operands.activations(&[rows, classes], DType::F32)?,
            labels: operands.ints(&[rows], &|i| (7 * i % classes.max(1)) as i32)?,
            scale: 1.0 / rows.max(1) as f32,
            loss: operands.output(&[rows], DType::F32)?,
            dx: spec.dx.then(|| operands.output(&[rows, classes], DType::F32)).transpose()?,
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
impl crate::wgpu::WgpuOp for CrossEntropy {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for CrossEntropy {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
