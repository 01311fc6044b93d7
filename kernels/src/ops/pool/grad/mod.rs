//! The gradient of [`Pool`](super::Pool), row by row of the result: of a mean, each of its rows gets an equal share; of the largest, the
//! first row that has it gets all, for each feature; of the first or last row, that one gets all.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::{PoolKind, PoolOver};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::ops::sums::Checked;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `d_out: [segments or blocks, d]  ->  dx: [rows, d]`, f32.
#[derive(Clone, Debug)]
pub struct PoolGrad {
    /// Rows `[rows, d]`, for the largest alone: other kinds do not ask what they were, and it is an error to give them.
    pub x: Option<View>,
    /// Which rows were reduced together.
    pub over: PoolOver,
    /// How.
    pub kind: PoolKind,
    /// Gradient of the result.
    pub d_out: View,
    /// Gradient of the rows `[rows, d]`: added to.
    pub dx: View,
}

/// The key of a [`PoolGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolGradSpec {
    /// Rows of the result, bucketed.
    pub rows: u32,
    /// Features.
    pub d: u32,
    /// How rows were reduced.
    pub kind: PoolKind,
    /// Rows of a block of a grid; 0 for segments.
    pub block_h: u32,
    /// Columns of a block of a grid; 0 for segments.
    pub block_w: u32,
}

impl Op for PoolGrad {
    const NAME: &'static str = "pool_grad";
    type Spec = PoolGradSpec;

    fn spec(&self) -> Result<PoolGradSpec, ShapeError> {
        let Self { x, over, kind, d_out, dx } = self;
        check::rank("dx", dx, 2)?;
        match (x, kind) {
            (Some(x), PoolKind::Max) => {
                check::shape("x", x, dx.shape())?;
                check::dtype("x", x, DType::F32)?;
            }
            (None, PoolKind::Max) => return Err(ShapeError::mismatch("x", "the rows, for max", "none")),
            (Some(_), _) => {
                return Err(ShapeError::mismatch("x", format!("none, for {kind:?}"), "rows"));
            }
            (None, _) => {}
        }
        let (rows, block_h, block_w) = over.check("dx", dx, *kind, ("dx", dx))?;
        check::shape("d_out", d_out, &[rows, dx.size(1)])?;
        check::dtype("d_out", d_out, DType::F32)?;
        Checked::new(d_out, x.as_ref().map(|x| ("x", x))).sum("dx", Some(dx), dx.shape())?;
        Ok(PoolGradSpec {
            rows: bucket(rows),
            d: dx.size(1) as u32,
            kind: *kind,
            block_h: block_h as u32,
            block_w: block_w as u32,
        })
    }

    fn cost(&self) -> Cost {
        let added = match self.kind {
            PoolKind::Mean => self.dx.bytes(),
            _ => self.d_out.bytes(),
        };
        let x = self.x.as_ref().map_or(0, View::bytes);
        Cost { flops: 2 * self.dx.len() as u64, read: x + self.d_out.bytes() + added, written: added }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        if let Some(x) = &mut self.x {
            visit(Access::In, x);
        }
        if let PoolOver::Segments(starts) = &mut self.over {
            visit(Access::In, starts);
        }
        visit(Access::In, &mut self.d_out);
        visit(Access::InOut, &mut self.dx);
    }

    fn of_spec(spec: &PoolGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        // Rows of a segment: its spec does not tell.
        const SEGMENT: usize = 16;
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let (block_h, block_w) = (spec.block_h as usize, spec.block_w as usize);
        let (over, each) = if block_h * block_w == 0 {
            let starts = operands.ints(&[rows + 1], &|i| (i * SEGMENT) as i32)?;
            (PoolOver::Segments(starts), SEGMENT)
        } else {
            let over = PoolOver::Grid { grid_h: block_h, grid_w: rows * block_w, block_h, block_w };
            (over, block_h * block_w)
        };
        let shape = [rows * each, d];
        Ok(PoolGrad {
            x: (spec.kind == PoolKind::Max).then(|| operands.activations(&shape, DType::F32)).transpose()?,
            over,
            kind: spec.kind,
            d_out: operands.activations(&[rows, d], DType::F32)?,
            dx: operands.output(&shape, DType::F32)?,
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
impl crate::wgpu::WgpuOp for PoolGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for PoolGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
