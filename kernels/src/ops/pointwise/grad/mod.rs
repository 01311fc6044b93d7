//! Gradients of [`Pointwise`](super::Pointwise).
//!
//! With `h = act(cap(x))`, `cap(x) = softcap * tanh(x / softcap)`, of `x` within bounds, and `factor = scale * col * row`:
//!
//! - `dx += d_out * factor * by * act'(cap(x)) * (1 - tanh(x / softcap)^2)`, nothing where `x` lies beyond its bounds;
//! - `d_col += sum over rows of d_out * scale * row * by * h`;
//! - `d_by += d_out * factor * h`;
//! - `d_add += d_out`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check_bounds;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::sums::Checked;
use crate::ops::{Activation, check};
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `x, d_out: [rows, d]  ->  dx, d_by, d_add: [rows, d]  d_col: [d]`, all f32. What is not asked for is not computed. One of `dx`, `d_by`
/// and `d_add` may be the very elements of `d_out`, which are then replaced.
#[derive(Clone, Debug)]
pub struct PointwiseGrad {
    /// Input `[rows, d]`.
    pub x: View,
    /// Least and largest value of `x`.
    pub bounds: Option<[f32; 2]>,
    /// Bounds `x` smoothly to `-softcap..softcap`; 0: not at all.
    pub softcap: f32,
    /// Applied to what the cap gives.
    pub act: Activation,
    /// Factor of all elements.
    pub scale: f32,
    /// Factor of each column `[d]`.
    pub col: Option<View>,
    /// Factor of each row `[rows]`.
    pub row: Option<View>,
    /// Factor of each element `[rows, d]`.
    pub by: Option<View>,
    /// Gradient of the result `[rows, d]`.
    pub d_out: View,
    /// Gradient of `x`, `[rows, d]`: added to.
    pub dx: Option<View>,
    /// Gradient of `col`, `[d]`: added to. Needs `col`.
    pub d_col: Option<View>,
    /// Gradient of `by`, `[rows, d]`: added to. Needs `by`.
    pub d_by: Option<View>,
    /// Gradient of what the forward op adds, `[rows, d]`: added to.
    pub d_add: Option<View>,
}

/// The key of a [`PointwiseGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PointwiseGradSpec {
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
    /// Whether columns have factors.
    pub col: bool,
    /// Whether rows have factors.
    pub row: bool,
    /// Whether elements have factors.
    pub by: bool,
    /// Whether the gradient of `x` is asked for.
    pub dx: bool,
    /// Whether that of the factors of columns is.
    pub d_col: bool,
    /// Whether that of the factors of elements is.
    pub d_by: bool,
    /// Whether that of what is added is.
    pub d_add: bool,
}

impl PointwiseGrad {
    /// The gradient of `x` for `out = x` and nothing else.
    #[must_use]
    pub fn new(x: View, d_out: View, dx: View) -> Self {
        Self {
            x,
            bounds: None,
            softcap: 0.0,
            act: Activation::None,
            scale: 1.0,
            col: None,
            row: None,
            by: None,
            d_out,
            dx: Some(dx),
            d_col: None,
            d_by: None,
            d_add: None,
        }
    }
}

impl Op for PointwiseGrad {
    const NAME: &'static str = "pointwise_grad";
    type Spec = PointwiseGradSpec;

    fn spec(&self) -> Result<PointwiseGradSpec, ShapeError> {
        let Self { x, col, row, by, d_out, dx, d_col, d_by, d_add, .. } = self;
        check::rank("x", x, 2)?;
        check_bounds(self.bounds)?;
        let (shape, rows, d) = (x.shape(), x.size(0), x.size(1));
        let mut inputs = Vec::new();
        for (name, view, shape) in [
            ("x", Some(x), shape),
            ("d_out", Some(d_out), shape),
            ("col", col.as_ref(), &[d]),
            ("row", row.as_ref(), &[rows]),
            ("by", by.as_ref(), shape),
        ] {
            if let Some(view) = view {
                check::shape(name, view, shape)?;
                check::dtype(name, view, DType::F32)?;
                inputs.extend((name != "d_out").then_some((name, view)));
            }
        }
        for (name, gradient, of, factor) in [("d_col", d_col, "col", col), ("d_by", d_by, "by", by)] {
            if gradient.is_some() && factor.is_none() {
                return Err(ShapeError::mismatch(name, format!("a `{of}` to go with it"), "none"));
            }
        }
        let mut checked = Checked::new(d_out, inputs);
        checked.sum_or_place("dx", dx.as_ref(), shape)?;
        checked.sum("d_col", d_col.as_ref(), &[d])?;
        checked.sum_or_place("d_by", d_by.as_ref(), shape)?;
        checked.sum_or_place("d_add", d_add.as_ref(), shape)?;
        Ok(PointwiseGradSpec {
            rows: bucket(rows),
            d: d as u32,
            bounds: self.bounds.is_some(),
            softcap: self.softcap != 0.0,
            act: self.act,
            col: col.is_some(),
            row: row.is_some(),
            by: by.is_some(),
            dx: dx.is_some(),
            d_col: d_col.is_some(),
            d_by: d_by.is_some(),
            d_add: d_add.is_some(),
        })
    }

    fn cost(&self) -> Cost {
        let bytes = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        let read = bytes(&self.col) + bytes(&self.row) + bytes(&self.by);
        let wanted = [&self.dx, &self.d_col, &self.d_by, &self.d_add];
        let written: u64 = wanted.into_iter().map(bytes).sum();
        let placed = wanted.into_iter().flatten().any(|view| view.same_elements(&self.d_out));
        let added = written - if placed { self.d_out.bytes() } else { 0 };
        Cost {
            flops: 8 * self.x.len() as u64,
            read: self.x.bytes() + self.d_out.bytes() + read + added,
            written,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        for view in [&mut self.col, &mut self.row, &mut self.by].into_iter().flatten() {
            visit(Access::In, view);
        }
        visit(Access::In, &mut self.d_out);
        for view in [&mut self.dx, &mut self.d_col, &mut self.d_by, &mut self.d_add].into_iter().flatten() {
            visit(Access::InOut, view);
        }
    }

    fn of_spec(spec: &PointwiseGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let mut to =
            |wanted: bool, shape: &[usize]| wanted.then(|| operands.output(shape, DType::F32)).transpose();
        let (dx, d_col) = (to(spec.dx, &[rows, d])?, to(spec.d_col, &[d])?);
        let (d_by, d_add) = (to(spec.d_by, &[rows, d])?, to(spec.d_add, &[rows, d])?);
        Ok(PointwiseGrad {
            x: operands.activations(&[rows, d], DType::F32)?,
            bounds: spec.bounds.then_some([-1.0, 1.0]),
            softcap: if spec.softcap { 30.0 } else { 0.0 },
            act: spec.act,
            scale: 1.0,
            col: spec.col.then(|| operands.table(&[d], DType::F32)).transpose()?,
            row: spec.row.then(|| operands.floats(&[rows], &|i| (i % 7) as f32)).transpose()?,
            by: spec.by.then(|| operands.activations(&[rows, d], DType::F32)).transpose()?,
            d_out: operands.activations(&[rows, d], DType::F32)?,
            dx,
            d_col,
            d_by,
            d_add,
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
impl crate::wgpu::WgpuOp for PointwiseGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for PointwiseGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
