//! Matrix multiplication with weights as they are stored, and what follows it fused.
//!
//! `out[i, j] = act(sum_k x[i, k] * w[j, k] + bias[j]) + residual[i, j]`; gated (SwiGLU and its like), the upper half
//! of the rows of `w` is the gate and the lower half is what it scales:
//! `out[i, j] = act(x w[j]) * (x w[j + n / 2]) + residual[i, j]`.

#[cfg(feature = "cuda")]
mod cuda;
pub(in crate::ops) mod grad;
mod heads;
mod of_spec;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;
pub(in crate::ops) mod cpu;
#[cfg(feature = "conformance")]
mod head_cases;

pub use heads::{Heads, HeadsSpec};
use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::{View, Weights};
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::select::Reject;
use crate::spec::{Cost, DType, Format, KernelError, MANY, ShapeError, bucket};

/// A function applied to each product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The product itself.
    #[default]
    None,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

/// What the arithmetic may round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Math {
    /// Products of the operands as stored, accumulated in f32.
    #[default]
    Exact,
    /// Activations may be rounded to bf16 before they are multiplied.
    Bf16,
    /// Activations may be rounded to 8-bit integers with one scale a row, or finer.
    Int8,
    /// Activations may be rounded to 8-bit floats (E4M3): those of each [`FP8_SPAN`] columns of a row with the scale `max / 448`.
    Fp8,
}

impl Math {
    /// Whether activations may be rounded to bf16. Integers of 8 bits are coarser; floats of 8 bits are to be exactly those.
    #[must_use]
    pub const fn takes_bf16(self) -> bool {
        matches!(self, Self::Bf16 | Self::Int8)
    }
}

/// Columns of activations, from the first on, that share a scale under [`Math::Fp8`].
pub const FP8_SPAN: usize = 128;

/// RMS normalization of the rows of x on their way into a product, in f32:
/// `x / sqrt(mean(x^2) + eps) * (weight_offset + weight)`.
#[derive(Clone, Debug)]
pub struct RowNorm {
    /// Scale `[k]`: floats.
    pub weight: View,
    /// Added to each weight: 1 for checkpoints that store `weight - 1`.
    pub weight_offset: f32,
    /// Added to the mean square.
    pub eps: f32,
}

/// `x: [m, k]  w: [n, k] any format  ->  out: [m, n]`, or `[m, n / 2]` if gated, or the query heads' columns where there are heads.
#[derive(Clone, Debug)]
pub struct Matmul {
    /// Activations `[m, k]`: f32, bf16 or f16; rows may be strided.
    pub x: View,
    /// What is done to the rows of x first. Not every backend has kernels for it: [`Exec::accepts`](crate::Exec::accepts) tells.
    pub norm: Option<RowNorm>,
    /// Weights `[n, k]` with their biases, stacked by rows.
    pub w: Weights,
    /// Applied to the biased product; if gated, to the gate.
    pub act: Activation,
    /// Whether the upper half of the rows of `w` gates the lower half.
    pub gated: bool,
    /// Added last, `[m, n_out]`. May be the very elements of `out`.
    pub residual: Option<View>,
    /// What becomes of the columns as heads, of which the queries are the result. Not every backend has kernels for it, either.
    pub heads: Option<Box<Heads>>,
    /// Result `[m, n_out]`; rows may be strided.
    pub out: View,
    /// What may be rounded.
    pub math: Math,
}

/// The key of a [`Matmul`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct MatmulSpec {
    /// Rows of `x`, bucketed.
    pub m: u32,
    /// Rows of `w`.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
    /// Type of the activations.
    pub x: DType,
    /// Whether rows of x are normalized first.
    pub norm: bool,
    /// Format of the weights.
    pub w: Format,
    /// Type of the result.
    pub out: DType,
    /// Stored tensors that make up `w`; 0 stands for one.
    pub parts: u32,
    /// Whether there is a bias.
    pub bias: bool,
    /// The activation.
    pub act: Activation,
    /// Whether the result is gated.
    pub gated: bool,
    /// Whether there is a residual.
    pub residual: bool,
    /// What may be rounded.
    pub math: Math,
    /// The heads, if its columns are such.
    #[serde(flatten)]
    pub heads: HeadsSpec,
}

impl MatmulSpec {
    /// Why a row that multiplies x as it is, and gives its products as they are, cannot run this, if so.
    pub(crate) fn reject_fused(&self) -> Option<Reject> {
        if self.heads.is_some() {
            return Some("turns no heads".into());
        }
        self.norm.then(|| "normalizes no rows of x".into())
    }
}

impl Matmul {
    /// `out = x w^T + bias` and nothing else.
    #[must_use]
    pub fn new(x: View, w: Weights, out: View) -> Self {
        Self {
            x,
            norm: None,
            w,
            act: Activation::None,
            gated: false,
            residual: None,
            heads: None,
            out,
            math: Math::Exact,
        }
    }

    /// Columns of the result.
    #[must_use]
    pub fn n_out(&self) -> usize {
        match &self.heads {
            Some(heads) => self.w.n() / heads.all().max(1) * heads.heads_q,
            None => self.columns(),
        }
    }

    /// Columns of products, two of which make one if gated.
    fn columns(&self) -> usize {
        if self.gated { self.w.n() / 2 } else { self.w.n() }
    }
}

impl Op for Matmul {
    const NAME: &'static str = "matmul";
    type Spec = MatmulSpec;

    fn spec(&self) -> Result<MatmulSpec, ShapeError> {
        let Self { x, norm, w, residual, out, .. } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        let (m, k) = (x.size(0), x.size(1));
        if w.k() != k {
            return Err(ShapeError::mismatch("w axis k", k, w.k()));
        }
        if self.gated && !w.n().is_multiple_of(2) {
            return Err(ShapeError::mismatch("w axis n of a gated product", "an even number", w.n()));
        }
        if let Some(RowNorm { weight, .. }) = norm {
            check::float("norm weight", weight)?;
            check::shape("norm weight", weight, &[k])?;
            check::output("out", out, [("norm weight", weight)])?;
        }
        check::float("out", out)?;
        check::shape("out", out, &[m, self.n_out()])?;
        check::output("out", out, [("x", x)])?;
        for plane in w.parts().iter().flat_map(|part| part.planes.iter().chain(&part.bias)) {
            check::output("out", out, [("w", plane)])?;
        }
        if let Some(residual) = residual {
            check::float("residual", residual)?;
            check::shape("residual", residual, &[m, self.n_out()])?;
            if !residual.same_elements(out) {
                check::output("out", out, [("residual", residual)])?;
            }
        }
        let heads = self.heads.as_ref().map_or(Ok(HeadsSpec::default()), |heads| heads.spec(self))?;
        Ok(MatmulSpec {
            m: bucket(m),
            n: w.n() as u32,
            k: k as u32,
            x: x.dtype(),
            norm: norm.is_some(),
            w: w.format(),
            out: out.dtype(),
            parts: if w.parts().len() == 1 { 0 } else { w.parts().len() as u32 },
            bias: w.has_bias(),
            act: self.act,
            gated: self.gated,
            residual: residual.is_some(),
            math: self.math,
            heads,
        })
    }

    fn is_optional(&self) -> bool {
        // What lies along n is reordered where it is uploaded.
        self.norm.is_some() || self.heads.is_some() || matches!(self.w.format(), Format::KMajor(..))
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|m| Self::Spec { m, ..*spec })
    }

    fn cost(&self) -> Cost {
        let (m, n, k) = (self.x.size(0) as u64, self.w.n() as u64, self.w.k() as u64);
        Cost {
            flops: 2 * m * n * k,
            read: self.x.bytes()
                + self.norm.as_ref().map_or(0, |norm| norm.weight.bytes())
                + self.w.bytes()
                + self.residual.as_ref().map_or(0, View::bytes),
            written: self.out.bytes()
                + self.heads.as_ref().map_or(0, |heads| heads.kept_bytes(self.x.size(0))),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        if let Some(norm) = &mut self.norm {
            visit(Access::In, &mut norm.weight);
        }
        self.w.for_each_view(&mut |view| visit(Access::In, view));
        if let Some(residual) = &mut self.residual {
            visit(Access::In, residual);
        }
        if let Some(heads) = &mut self.heads {
            heads.visit(visit);
        }
        visit(Access::Out, &mut self.out);
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.w)
    }

    fn of_spec(spec: &MatmulSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        of_spec::product(spec, operands)
    }

    fn parts(&self) -> Result<Vec<Self>, KernelError> {
        of_spec::parts(self)
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
