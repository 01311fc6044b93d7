//! The gradients of [`ScatterRows`](super::ScatterRows): `d_src[i] += d_out[rows[i]]`, and then `d_out[rows[i]] = 0`, since what was there
//! before had no influence.

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

/// `rows: [count]  d_out: [tokens, d] in place  ->  d_src: [count, d]`, floats f32.
#[derive(Clone, Debug)]
pub struct ScatterRowsGrad {
    /// i32 `[count]`, all different; for negative ones nothing was placed, ones beyond `d_out` are an error.
    pub rows: View,
    /// Gradient of the rows after the forward op, `[tokens, d]`; becomes that of the rows before it.
    pub d_out: View,
    /// Gradient of the rows that were placed `[count, d]`: added to.
    pub d_src: Option<View>,
}

/// The key of a [`ScatterRowsGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ScatterRowsGradSpec {
    /// Rows placed, bucketed.
    pub count: u32,
    /// Elements of a row.
    pub d: u32,
    /// Whether the gradient of the rows placed is asked for.
    pub d_src: bool,
}

impl Op for ScatterRowsGrad {
    const NAME: &'static str = "scatter_rows_grad";
    type Spec = ScatterRowsGradSpec;

    fn spec(&self) -> Result<ScatterRowsGradSpec, ShapeError> {
        let Self { rows, d_out, d_src } = self;
        check::rank("rows", rows, 1)?;
        check::dtype("rows", rows, DType::I32)?;
        check::rank("d_out", d_out, 2)?;
        check::dtype("d_out", d_out, DType::F32)?;
        check::output("d_out", d_out, [("rows", rows)])?;
        let (count, d) = (rows.size(0), d_out.size(1));
        Checked::new(d_out, [("rows", rows)]).sum("d_src", d_src.as_ref(), &[count, d])?;
        Ok(ScatterRowsGradSpec { count: bucket(count), d: d as u32, d_src: d_src.is_some() })
    }

    fn cost(&self) -> Cost {
        let placed = (self.rows.len() * self.d_out.size(1) * DType::F32.size()) as u64;
        let d_src = self.d_src.as_ref().map_or(0, View::bytes);
        Cost { flops: d_src / 4, read: self.rows.bytes() + 2 * d_src, written: placed + d_src }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.rows);
        visit(Access::InOut, &mut self.d_out);
        if let Some(d_src) = &mut self.d_src {
            visit(Access::InOut, d_src);
        }
    }

    fn of_spec(spec: &ScatterRowsGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (count, d) = (spec.count as usize, spec.d as usize);
        Ok(ScatterRowsGrad {
            rows: operands.ints(&[count], &|i| 2 * i as i32)?,
            d_out: operands.output(&[2 * count, d], DType::F32)?,
            d_src: spec.d_src.then(|| operands.output(&[count, d], DType::F32)).transpose()?,
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
impl crate::wgpu::WgpuOp for ScatterRowsGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for ScatterRowsGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
