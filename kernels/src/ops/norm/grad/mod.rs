//! Gradients of [`Norm`](super::Norm).
//!
//! With `g = d_out * (weight_offset + weight)`, `r = 1 / sqrt(mean(x^2) + eps)` or, for the layer kind, `1 / sqrt(var(x) + eps)`,
//! and `unit = x * r` or `(x - mean(x)) * r`, row by row:
//!
//! `dx += r * (g - unit * mean(g * unit))`, for the layer kind `dx += r * (g - mean(g) - unit * mean(g * unit))`;
//! `d_weight += sum over rows of d_out * unit`; `d_bias += sum over rows of d_out`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::NormKind;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::ops::sums::Checked;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, MANY, ShapeError, bucket};

/// `x, d_out: [rows, d]  ->  dx: [rows, d]  d_weight, d_bias: [d]`, all f32. What is not asked for is not computed.
#[derive(Clone, Debug)]
pub struct NormGrad {
    /// What was normalized `[rows, d]`: where something was added before, the sum.
    pub x: View,
    /// Scale `[d]`.
    pub weight: Option<View>,
    /// Which normalization.
    pub kind: NormKind,
    /// Added to each weight, as in the forward op.
    pub weight_offset: f32,
    /// Added to mean square or variance.
    pub eps: f32,
    /// Gradient of the result `[rows, d]`.
    pub d_out: View,
    /// Gradient of `x`, and so of each of the two that were added, `[rows, d]`: added to. May be the very elements of `d_out`,
    /// which are then replaced.
    pub dx: Option<View>,
    /// Gradient of the scale `[d]`: added to. Needs `weight`.
    pub d_weight: Option<View>,
    /// Gradient of the shift `[d]`: added to.
    pub d_bias: Option<View>,
}

/// The key of a [`NormGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct NormGradSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
    /// Which normalization.
    pub kind: NormKind,
    /// Whether there is a scale.
    pub weight: bool,
    /// Whether the gradient of the rows is asked for.
    pub dx: bool,
    /// Whether that of the scale is.
    pub d_weight: bool,
    /// Whether that of the shift is.
    pub d_bias: bool,
}

impl Op for NormGrad {
    const NAME: &'static str = "norm_grad";
    type Spec = NormGradSpec;

    fn spec(&self) -> Result<NormGradSpec, ShapeError> {
        let Self { x, weight, d_out, dx, d_weight, d_bias, .. } = self;
        check::rank("x", x, 2)?;
        check::dtype("x", x, DType::F32)?;
        check::shape("d_out", d_out, x.shape())?;
        check::dtype("d_out", d_out, DType::F32)?;
        let d = x.size(1);
        if let Some(weight) = weight {
            check::shape("weight", weight, &[d])?;
            check::dtype("weight", weight, DType::F32)?;
        } else if d_weight.is_some() {
            return Err(ShapeError::mismatch("d_weight", "a `weight` to go with it", "none"));
        }
        let inputs = [("x", x)].into_iter().chain(weight.as_ref().map(|weight| ("weight", weight)));
        let mut checked = Checked::new(d_out, inputs);
        checked.sum_or_place("dx", dx.as_ref(), x.shape())?;
        checked.sum("d_weight", d_weight.as_ref(), &[d])?;
        checked.sum("d_bias", d_bias.as_ref(), &[d])?;
        Ok(NormGradSpec {
            rows: bucket(x.size(0)),
            d: d as u32,
            kind: self.kind,
            weight: weight.is_some(),
            dx: dx.is_some(),
            d_weight: d_weight.is_some(),
            d_bias: d_bias.is_some(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|rows| Self::Spec { rows, ..*spec })
    }

    fn cost(&self) -> Cost {
        let bytes = |view: &Option<View>| view.as_ref().map_or(0, View::bytes);
        let written = bytes(&self.dx) + bytes(&self.d_weight) + bytes(&self.d_bias);
        let placed = self.dx.as_ref().is_some_and(|dx| dx.same_elements(&self.d_out));
        let added = written - if placed { self.d_out.bytes() } else { 0 };
        Cost {
            flops: 13 * self.x.len() as u64,
            read: self.x.bytes() + self.d_out.bytes() + bytes(&self.weight) + added,
            written,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        for view in self.weight.iter_mut() {
            visit(Access::In, view);
        }
        visit(Access::In, &mut self.d_out);
        for view in self.dx.iter_mut().chain(&mut self.d_weight).chain(&mut self.d_bias) {
            visit(Access::InOut, view);
        }
    }

    fn of_spec(spec: &NormGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let mut to =
            |wanted: bool, shape: &[usize]| wanted.then(|| operands.output(shape, DType::F32)).transpose();
        let (dx, d_weight, d_bias) =
            (to(spec.dx, &[rows, d])?, to(spec.d_weight, &[d])?, to(spec.d_bias, &[d])?);
        Ok(NormGrad {
            x: operands.activations(&[rows, d], DType::F32)?,
            weight: spec.weight.then(|| operands.table(&[d], DType::F32)).transpose()?,
            kind: spec.kind,
            weight_offset: 0.0,
            eps: 1e-6,
            d_out: operands.activations(&[rows, d], DType::F32)?,
            dx,
            d_weight,
            d_bias,
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
impl crate::wgpu::WgpuOp for NormGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for NormGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
