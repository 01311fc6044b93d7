//! Rows as probabilities: `out[i] = exp(x[i]) / sum_j exp(x[j])`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `x: [rows, d]  ->  out: [rows, d]`.
#[derive(Clone, Debug)]
pub struct Softmax {
    /// Logits `[rows, d]`.
    pub x: View,
    /// Their probabilities `[rows, d]`; shares no memory with `x`.
    pub out: View,
}

/// The key of a [`Softmax`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SoftmaxSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
    /// Type of the logits.
    pub x: DType,
    /// Type of the probabilities.
    pub out: DType,
}

impl Op for Softmax {
    const NAME: &'static str = "softmax";
    type Spec = SoftmaxSpec;

    fn spec(&self) -> Result<SoftmaxSpec, ShapeError> {
        let Self { x, out } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::float("out", out)?;
        check::shape("out", out, x.shape())?;
        check::output("out", out, [("x", x)])?;
        Ok(SoftmaxSpec { rows: bucket(x.size(0)), d: x.size(1) as u32, x: x.dtype(), out: out.dtype() })
    }

    fn cost(&self) -> Cost {
        Cost { flops: 12 * self.x.len() as u64, read: self.x.bytes(), written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &SoftmaxSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let shape = [spec.rows as usize, spec.d as usize];
        Ok(Softmax { x: operands.activations(&shape, spec.x)?, out: operands.output(&shape, spec.out)? })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
