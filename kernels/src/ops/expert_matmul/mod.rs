//! Products of rows with the matrices of their experts, in one launch for all choices: steps of few rows, whose experts the device
//! alone knows.
//!
//! Choice `i` is a row of x and an expert: `out[i, j] = act(sum_k x[i / share, k] * w[ids[i] * n + j, k])`, where `w` has `n` rows for
//! each expert; gated, the upper half of an expert's rows is the gate and the lower half what it scales.

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
use super::matmul::Activation;
use crate::buffer::{View, Weights};
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, Format, KernelError, MANY, ShapeError, bucket};

/// `x: [choices / share, k]  w: [experts * n, k] any format  ids: [choices]  ->  out: [choices, n]`, or `[choices, n / 2]` if gated.
#[derive(Clone, Debug)]
pub struct ExpertMatmul {
    /// Activations `[choices / share, k]`.
    pub x: View,
    /// The experts' matrices one after the other `[experts * n, k]`, without biases.
    pub w: Weights,
    /// Experts.
    pub experts: usize,
    /// i32 `[choices]`: the expert of each choice; others than those there are are an error.
    pub ids: View,
    /// Choices of each row of x, which follow each other.
    pub share: usize,
    /// Applied to the product; if gated, to the gate.
    pub act: Activation,
    /// Whether the upper half of an expert's rows gates the lower half.
    pub gated: bool,
    /// Result `[choices, n_out]`.
    pub out: View,
}

/// The key of an [`ExpertMatmul`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ExpertMatmulSpec {
    /// Choices, bucketed.
    pub choices: u32,
    /// Choices of a row of x.
    pub share: u32,
    /// Experts.
    pub experts: u32,
    /// Rows of an expert.
    pub n: u32,
    /// Columns.
    pub k: u32,
    /// Type of the activations.
    pub x: DType,
    /// Format of the weights.
    pub w: Format,
    /// Type of the result.
    pub out: DType,
    /// The activation.
    pub act: Activation,
    /// Whether the result is gated.
    pub gated: bool,
}

impl ExpertMatmul {
    /// Rows of an expert.
    #[must_use]
    pub fn n(&self) -> usize {
        self.w.n() / self.experts.max(1)
    }

    /// Columns of the result.
    #[must_use]
    pub fn n_out(&self) -> usize {
        if self.gated { self.n() / 2 } else { self.n() }
    }

    /// Whether the parts of the matrix hold whole experts.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn whole_experts(&self) -> bool {
        self.w.parts().iter().all(|part| part.rows.is_multiple_of(self.n().max(1)))
    }
}

impl Op for ExpertMatmul {
    const NAME: &'static str = "expert_matmul";
    type Spec = ExpertMatmulSpec;

    fn spec(&self) -> Result<ExpertMatmulSpec, ShapeError> {
        let Self { x, w, ids, out, .. } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::dtype("ids", ids, DType::I32)?;
        check::rank("ids", ids, 1)?;
        if x.size(0) * self.share != ids.size(0) {
            return Err(ShapeError::mismatch("ids axis 0", x.size(0) * self.share, ids.size(0)));
        }
        if w.k() != x.size(1) {
            return Err(ShapeError::mismatch("w axis k", x.size(1), w.k()));
        }
        let whole = if self.gated { 2 * self.experts } else { self.experts };
        if whole == 0 || !w.n().is_multiple_of(whole) {
            return Err(ShapeError::mismatch("w axis n", format!("a multiple of {whole}"), w.n()));
        }
        if w.has_bias() {
            return Err(ShapeError::mismatch("w", "no bias", "a bias"));
        }
        check::float("out", out)?;
        check::shape("out", out, &[ids.size(0), self.n_out()])?;
        check::output("out", out, [("x", x), ("ids", ids)])?;
        for plane in w.parts().iter().flat_map(|part| &part.planes) {
            check::output("out", out, [("w", plane)])?;
        }
        Ok(ExpertMatmulSpec {
            choices: bucket(ids.size(0)),
            share: self.share as u32,
            experts: self.experts as u32,
            n: self.n() as u32,
            k: w.k() as u32,
            x: x.dtype(),
            w: w.format(),
            out: out.dtype(),
            act: self.act,
            gated: self.gated,
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|choices| Self::Spec { choices, ..*spec })
    }

    fn cost(&self) -> Cost {
        let (choices, n, k) = (self.ids.size(0), self.n(), self.w.k());
        Cost {
            flops: 2 * (choices * n * k) as u64,
            read: self.x.bytes() + self.ids.bytes() + self.w.format().bytes(choices.min(self.experts) * n, k),
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        self.w.for_each_view(&mut |view| visit(Access::In, view));
        visit(Access::In, &mut self.ids);
        visit(Access::Out, &mut self.out);
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.w)
    }

    fn of_spec(spec: &ExpertMatmulSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (n, k, experts) = (spec.n as usize, spec.k as usize, (spec.experts as usize).max(1));
        let share = (spec.share as usize).max(1);
        let choices = (spec.choices as usize).next_multiple_of(share);
        Ok(ExpertMatmul {
            x: operands.activations(&[choices / share, k], spec.x)?,
            w: operands.weights(spec.w, experts * n, k, 1, false)?,
            experts,
            ids: operands.ints(&[choices], &|i| ((i + 1) * 7919 % experts) as i32)?,
            share,
            act: spec.act,
            gated: spec.gated,
            out: operands.output(&[choices, if spec.gated { n / 2 } else { n }], spec.out)?,
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
