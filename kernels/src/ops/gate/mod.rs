//! Heads times the sigmoid of gates, element by element.
//!
//! `out = x / (1 + exp(-gate))`. Gates may lie beside other parts of each head.

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

/// `x: [rows, heads, d]  gate: [rows, heads, d]  ->  out: [rows, heads, d]`.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Factors `[rows, heads, d]`.
    pub x: View,
    /// Gates `[rows, heads, d]`.
    pub gate: View,
    /// Result `[rows, heads, d]`; may be the very elements of `x`.
    pub out: View,
}

/// The key of a [`Gate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct GateSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Heads of a row.
    pub heads: u32,
    /// Elements of a head.
    pub d: u32,
    /// Type of the factors.
    pub x: DType,
    /// Type of the gates.
    pub gate: DType,
    /// Type of the result.
    pub out: DType,
}

impl Op for Gate {
    const NAME: &'static str = "gate";
    type Spec = GateSpec;

    fn spec(&self) -> Result<GateSpec, ShapeError> {
        let Self { x, gate, out } = self;
        check::rank("x", x, 3)?;
        for (name, view) in [("x", x), ("gate", gate), ("out", out)] {
            check::float(name, view)?;
            check::shape(name, view, x.shape())?;
        }
        let in_place = out.same_elements(x);
        check::output("out", out, [("gate", gate)].into_iter().chain((!in_place).then_some(("x", x))))?;
        Ok(GateSpec {
            rows: bucket(x.size(0)),
            heads: x.size(1) as u32,
            d: x.size(2) as u32,
            x: x.dtype(),
            gate: gate.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        Cost {
            flops: 6 * self.x.len() as u64,
            read: self.x.bytes() + self.gate.bytes(),
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.gate);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &GateSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let shape = [spec.rows as usize, spec.heads as usize, spec.d as usize];
        Ok(Gate {
            x: operands.activations(&shape, spec.x)?,
            gate: operands.activations(&shape, spec.gate)?,
            out: operands.output(&shape, spec.out)?,
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
