//! The gradient of [`GatherRows`](super::GatherRows) by a table of floats: `d_table[ids[i]] += scale * d_out[i]`.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::ops::sums::Checked;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `ids: [tokens]  d_out: [tokens, d]  ->  d_table: [rows, d]`, floats f32.
#[derive(Clone, Debug)]
pub struct GatherRowsGrad {
    /// i32 `[tokens]`; an id may be there any number of times, ids beyond the table are an error.
    pub ids: View,
    /// Factor of each element, as in the forward op.
    pub scale: f32,
    /// Gradient of the result `[tokens, d]`.
    pub d_out: View,
    /// Gradient of the table `[rows, d]`: added to. Rows without an id stay.
    pub d_table: View,
}

/// The key of a [`GatherRowsGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct GatherRowsGradSpec {
    /// Rows picked, bucketed.
    pub tokens: u32,
    /// Rows of the table.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
}

impl Op for GatherRowsGrad {
    const NAME: &'static str = "gather_rows_grad";
    type Spec = GatherRowsGradSpec;

    fn spec(&self) -> Result<GatherRowsGradSpec, ShapeError> {
        let Self { ids, d_out, d_table, .. } = self;
        check::rank("ids", ids, 1)?;
        check::dtype("ids", ids, DType::I32)?;
        check::rank("d_out", d_out, 2)?;
        check::dtype("d_out", d_out, DType::F32)?;
        check::shape("d_out", d_out, &[ids.size(0), d_out.size(1)])?;
        check::rank("d_table", d_table, 2)?;
        let (rows, d) = (d_table.size(0), d_out.size(1));
        Checked::new(d_out, [("ids", ids)]).sum("d_table", Some(d_table), &[rows, d])?;
        Ok(GatherRowsGradSpec { tokens: bucket(ids.size(0)), rows: rows as u32, d: d as u32 })
    }

    fn cost(&self) -> Cost {
        let written = self.d_out.bytes();
        Cost {
            flops: 2 * self.d_out.len() as u64,
            read: self.ids.bytes() + self.d_out.bytes() + written,
            written,
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.ids);
        visit(Access::In, &mut self.d_out);
        visit(Access::InOut, &mut self.d_table);
    }

    fn of_spec(spec: &GatherRowsGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (tokens, rows, d) = (spec.tokens as usize, spec.rows as usize, spec.d as usize);
        Ok(GatherRowsGrad {
            ids: operands.ints(&[tokens], &|i| ((i + 1) * 7919 % rows.max(1)) as i32)?,
            scale: 1.0,
            d_out: operands.activations(&[tokens, d], DType::F32)?,
            d_table: operands.output(&[rows, d], DType::F32)?,
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
impl crate::wgpu::WgpuOp for GatherRowsGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for GatherRowsGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
