//! RMS and layer normalization of rows, with the residual addition before it.
//!
//! `s = x + add`; RMS: `out = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)`;
//! layer: `out = (s - mean(s)) / sqrt(var(s) + eps) * (weight_offset + weight) + bias`.

mod cpu;
#[cfg(feature = "cuda")]
pub(in crate::ops) mod cuda;
mod grad;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub use self::grad::{NormGrad, NormGradSpec};
use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, MANY, ShapeError, bucket};

/// Which normalization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// By the root of the mean square.
    #[default]
    Rms,
    /// By mean and standard deviation (of the population).
    Layer,
}

/// `x: [rows, d]  ->  out: [rows, d]`.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Input `[rows, d]`.
    pub x: View,
    /// Added to `x` before, `[rows, d]`.
    pub add: Option<View>,
    /// Receives `x + add`, `[rows, d]`; may be the very elements of `x` or `add`. Needs `add`.
    pub sum: Option<View>,
    /// Scale `[d]`.
    pub weight: Option<View>,
    /// Shift `[d]`.
    pub bias: Option<View>,
    /// Which normalization.
    pub kind: NormKind,
    /// Added to each weight: 1 for checkpoints that store `weight - 1`.
    pub weight_offset: f32,
    /// Added to mean square or variance.
    pub eps: f32,
    /// Result `[rows, d]`; may be the very elements of `x`.
    pub out: View,
}

/// The key of a [`Norm`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct NormSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
    /// Which normalization.
    pub kind: NormKind,
    /// Type of `x` and `add`.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
    /// Whether something is added before.
    pub add: bool,
    /// Whether the sum is stored.
    pub sum: bool,
    /// Whether there is a shift.
    pub bias: bool,
}

impl Op for Norm {
    const NAME: &'static str = "norm";
    type Spec = NormSpec;

    fn spec(&self) -> Result<NormSpec, ShapeError> {
        let Self { x, add, sum, weight, bias, out, .. } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        let d = x.size(1);
        if let Some(add) = add {
            check::shape("add", add, x.shape())?;
            check::dtype("add", add, x.dtype())?;
        }
        for (name, view) in [("weight", weight), ("bias", bias)] {
            if let Some(view) = view {
                check::shape(name, view, &[d])?;
                check::float(name, view)?;
                check::output("out", out, [(name, view)])?;
            }
        }
        check::shape("out", out, x.shape())?;
        check::float("out", out)?;
        let writes = |name, to: &View| {
            for (input, view) in [("x", Some(x)), ("add", add.as_ref())] {
                match view {
                    Some(view) if !view.same_elements(to) => check::output(name, to, [(input, view)])?,
                    _ => check::output(name, to, [])?,
                }
            }
            Ok(())
        };
        writes("out", out)?;
        if let Some(sum) = sum {
            if add.is_none() {
                return Err(ShapeError::mismatch("sum", "an `add` to go with it", "none"));
            }
            check::shape("sum", sum, x.shape())?;
            check::dtype("sum", sum, x.dtype())?;
            for (name, view) in [("weight", weight), ("bias", bias)] {
                check::output("sum", sum, view.as_ref().map(|view| (name, view)))?;
            }
            writes("sum", sum)?;
            check::output("out", out, [("sum", sum)])?;
        }
        Ok(NormSpec {
            rows: bucket(x.size(0)),
            d: d as u32,
            kind: self.kind,
            x: x.dtype(),
            out: out.dtype(),
            add: add.is_some(),
            sum: sum.is_some(),
            bias: bias.is_some(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|rows| Self::Spec { rows, ..*spec })
    }

    fn cost(&self) -> Cost {
        let bytes = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        Cost {
            flops: 5 * self.x.len() as u64,
            read: self.x.bytes() + bytes(&self.add) + bytes(&self.weight) + bytes(&self.bias),
            written: self.out.bytes() + bytes(&self.sum),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        for view in self.add.iter_mut().chain(&mut self.weight).chain(&mut self.bias) {
            visit(Access::In, view);
        }
        if let Some(sum) = &mut self.sum {
            visit(Access::Out, sum);
        }
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &NormSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let shape = [rows, d];
        Ok(Norm {
            x: operands.activations(&shape, spec.x)?,
            add: if spec.add { Some(operands.activations(&shape, spec.x)?) } else { None },
            sum: if spec.sum { Some(operands.output(&shape, spec.x)?) } else { None },
            weight: Some(operands.table(&[d], DType::F32)?),
            bias: if spec.bias { Some(operands.table(&[d], DType::F32)?) } else { None },
            kind: spec.kind,
            weight_offset: 0.0,
            eps: 1e-6,
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
