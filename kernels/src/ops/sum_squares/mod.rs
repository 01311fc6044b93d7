//! Sums of squares of blocks of values: what the norm of a gradient is made of.
//!
//! `out[b] = sum of x[i]^2` over the values of block `b`, [`SumSquares::BLOCK`] each: the same bits whatever the number of threads.

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

/// `x: [n]  ->  out: [ceil(n / BLOCK)]`, dense f32.
#[derive(Clone, Debug)]
pub struct SumSquares {
    /// Values `[n]`.
    pub x: View,
    /// Sums `[ceil(n / BLOCK)]`.
    pub out: View,
}

impl SumSquares {
    /// Values of a block; the last one may have fewer.
    pub const BLOCK: usize = 1 << 14;
}

/// The key of a [`SumSquares`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct SumSquaresSpec {
    /// Values, bucketed.
    pub n: u32,
}

impl Op for SumSquares {
    const NAME: &'static str = "sum_squares";
    type Spec = SumSquaresSpec;

    fn spec(&self) -> Result<SumSquaresSpec, ShapeError> {
        let Self { x, out } = self;
        check::rank("x", x, 1)?;
        check::dtype("x", x, DType::F32)?;
        check::dtype("out", out, DType::F32)?;
        check::shape("out", out, &[x.len().div_ceil(Self::BLOCK)])?;
        check::output("out", out, [("x", x)])?;
        Ok(SumSquaresSpec { n: bucket(x.len()) })
    }

    fn cost(&self) -> Cost {
        Cost { flops: 2 * self.x.len() as u64, read: self.x.bytes(), written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &SumSquaresSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let n = spec.n as usize;
        let (x, out) = (
            operands.activations(&[n], DType::F32)?,
            operands.output(&[n.div_ceil(Self::BLOCK)], DType::F32)?,
        );
        Ok(Self { x, out })
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
impl crate::wgpu::WgpuOp for SumSquares {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for SumSquares {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
