//! Rows element by element: a function of them, scaled, multiplied and added to others.
//!
//! `out = scale * col * row * act(cap(x)) * by + add` with `cap(x) = softcap * tanh(x / softcap)`, of `x` within bounds. Scales of
//! layers, residual multipliers, gates, caps of logits, layers with clipped inputs, weighted sums of rows.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub use self::grad::{PointwiseGrad, PointwiseGradSpec};
use super::{Activation, check};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `x: [rows, d]  ->  out: [rows, d]`.
#[derive(Clone, Debug)]
pub struct Pointwise {
    /// Input `[rows, d]`.
    pub x: View,
    /// Least and largest value of `x`: what lies beyond is taken for the nearer of them, before anything else.
    pub bounds: Option<[f32; 2]>,
    /// Bounds `x` smoothly to `-softcap..softcap`; 0: not at all.
    pub softcap: f32,
    /// Applied to what the cap gives.
    pub act: Activation,
    /// Factor of all elements.
    pub scale: f32,
    /// Factor of each column `[d]`.
    pub col: Option<View>,
    /// Factor of each row, f32 `[rows]`.
    pub row: Option<View>,
    /// Factor of each element, `[rows, d]` of the type of `x`.
    pub by: Option<View>,
    /// Added last, `[rows, d]` of the type of `out`.
    pub add: Option<View>,
    /// Result `[rows, d]`; may be the very elements of `x`, `by` or `add`.
    pub out: View,
}

/// The key of a [`Pointwise`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PointwiseSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
    /// Whether `x` has bounds.
    pub bounds: bool,
    /// Whether `x` is capped.
    pub softcap: bool,
    /// The activation.
    pub act: Activation,
    /// Type of `x` and `by`.
    pub x: DType,
    /// Type of the result and of `add`.
    pub out: DType,
    /// Whether columns have factors.
    pub col: bool,
    /// Whether rows have factors.
    pub row: bool,
    /// Whether elements have factors.
    pub by: bool,
    /// Whether something is added.
    pub add: bool,
}

impl Pointwise {
    /// `out = x` and nothing else.
    #[must_use]
    pub fn new(x: View, out: View) -> Self {
        Self {
            x,
            bounds: None,
            softcap: 0.0,
            act: Activation::None,
            scale: 1.0,
            col: None,
            row: None,
            by: None,
            add: None,
            out,
        }
    }
}

/// Checks that the least value is not above the largest.
fn check_bounds(bounds: Option<[f32; 2]>) -> Result<(), ShapeError> {
    match bounds {
        Some([low, high]) if low > high || low.is_nan() || high.is_nan() => {
            Err(ShapeError::mismatch("bounds", "the least one first", format!("{low} and {high}")))
        }
        _ => Ok(()),
    }
}

impl Op for Pointwise {
    const NAME: &'static str = "pointwise";
    type Spec = PointwiseSpec;

    fn spec(&self) -> Result<PointwiseSpec, ShapeError> {
        let Self { x, col, row, by, add, out, .. } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::float("out", out)?;
        check::shape("out", out, x.shape())?;
        if let Some(col) = col {
            check::shape("col", col, &[x.size(1)])?;
            check::float("col", col)?;
            check::output("out", out, [("col", col)])?;
        }
        if let Some(row) = row {
            check::shape("row", row, &[x.size(0)])?;
            check::dtype("row", row, DType::F32)?;
            check::output("out", out, [("row", row)])?;
        }
        for (name, view, dtype) in [("by", by, x.dtype()), ("add", add, out.dtype())] {
            if let Some(view) = view {
                check::shape(name, view, x.shape())?;
                check::dtype(name, view, dtype)?;
            }
        }
        check_bounds(self.bounds)?;
        check::output("out", out, [])?;
        for (name, view) in [("x", Some(x)), ("by", by.as_ref()), ("add", add.as_ref())] {
            if let Some(view) = view.filter(|view| !view.same_elements(out)) {
                check::output("out", out, [(name, view)])?;
            }
        }
        Ok(PointwiseSpec {
            rows: bucket(x.size(0)),
            d: x.size(1) as u32,
            bounds: self.bounds.is_some(),
            softcap: self.softcap != 0.0,
            act: self.act,
            x: x.dtype(),
            out: out.dtype(),
            col: col.is_some(),
            row: row.is_some(),
            by: by.is_some(),
            add: add.is_some(),
        })
    }

    fn cost(&self) -> Cost {
        let bytes = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        let read = bytes(&self.col) + bytes(&self.row) + bytes(&self.by) + bytes(&self.add);
        Cost { flops: 4 * self.x.len() as u64, read: self.x.bytes() + read, written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        for view in [&mut self.col, &mut self.row, &mut self.by, &mut self.add].into_iter().flatten() {
            visit(Access::In, view);
        }
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &PointwiseSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let mut op =
            Self::new(operands.activations(&[rows, d], spec.x)?, operands.output(&[rows, d], spec.out)?);
        op.bounds = spec.bounds.then_some([-1.0, 1.0]);
        op.softcap = if spec.softcap { 30.0 } else { 0.0 };
        op.act = spec.act;
        if spec.col {
            op.col = Some(operands.table(&[d], spec.x)?);
        }
        if spec.row {
            op.row = Some(operands.floats(&[rows], &|i| (i % 7) as f32)?);
        }
        if spec.by {
            op.by = Some(operands.activations(&[rows, d], spec.x)?);
        }
        if spec.add {
            op.add = Some(operands.activations(&[rows, d], spec.out)?);
        }
        Ok(op)
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
