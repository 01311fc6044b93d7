//! The gradient of an activation, as [`Matmul`](super::Matmul) and [`Pointwise`](super::Pointwise) apply it, by its argument.
//!
//! `dz[i, j] = d_out[i, j] * act'(z[i, j])`; gated, where `out[i, j] = act(z[i, j]) * z[i, j + n / 2]`,
//! `dz[i, j] = d_out[i, j] * act'(z[i, j]) * z[i, j + n / 2]` and `dz[i, j + n / 2] = d_out[i, j] * act(z[i, j])`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub(in crate::ops) use self::cpu::with_slope;
pub(in crate::ops) use self::reference::slope_with_error;
use super::{Activation, check};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `z: [rows, n]  d_out: [rows, n_out]  ->  dz: [rows, n]`, all f32; `n_out` is `n`, or `n / 2` if gated. Unlike other
/// gradients, `dz` is written and not added to.
#[derive(Clone, Debug)]
pub struct ActGrad {
    /// Arguments of the activation `[rows, n]`; if gated, the first half of the columns are those, and the second half is what
    /// they gate.
    pub z: View,
    /// The activation.
    pub act: Activation,
    /// Whether the first half of the columns gates the second.
    pub gated: bool,
    /// Gradient of the result `[rows, n_out]`.
    pub d_out: View,
    /// Receives the gradient of `z`, `[rows, n]`: written, whatever was there. May be the very elements of `z`.
    pub dz: View,
}

/// The key of an [`ActGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ActGradSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Columns of `z`.
    pub n: u32,
    /// The activation.
    pub act: Activation,
    /// Whether half of the columns gates the other.
    pub gated: bool,
}

impl Op for ActGrad {
    const NAME: &'static str = "act_grad";
    type Spec = ActGradSpec;

    fn spec(&self) -> Result<ActGradSpec, ShapeError> {
        let Self { z, gated, d_out, dz, .. } = self;
        check::rank("z", z, 2)?;
        check::dtype("z", z, DType::F32)?;
        let (rows, n) = (z.size(0), z.size(1));
        if *gated && !n.is_multiple_of(2) {
            return Err(ShapeError::mismatch("z axis 1, gated", "an even number", n));
        }
        check::shape("d_out", d_out, &[rows, if *gated { n / 2 } else { n }])?;
        check::dtype("d_out", d_out, DType::F32)?;
        check::shape("dz", dz, z.shape())?;
        check::dtype("dz", dz, DType::F32)?;
        check::output("dz", dz, [("d_out", d_out)])?;
        if !dz.same_elements(z) {
            check::output("dz", dz, [("z", z)])?;
        }
        Ok(ActGradSpec { rows: bucket(rows), n: n as u32, act: self.act, gated: *gated })
    }

    fn cost(&self) -> Cost {
        Cost {
            flops: 8 * self.z.len() as u64,
            read: self.z.bytes() + self.d_out.bytes(),
            written: self.dz.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.z);
        visit(Access::In, &mut self.d_out);
        visit(Access::Out, &mut self.dz);
    }

    fn of_spec(spec: &ActGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, n) = (spec.rows as usize, spec.n as usize);
        Ok(ActGrad {
            z: operands.activations(&[rows, n], DType::F32)?,
            act: spec.act,
            gated: spec.gated,
            d_out: operands.activations(&[rows, if spec.gated { n / 2 } else { n }], DType::F32)?,
            dz: operands.output(&[rows, n], DType::F32)?,
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
impl crate::wgpu::WgpuOp for ActGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for ActGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
