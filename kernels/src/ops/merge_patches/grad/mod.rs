//! The gradient of [`MergePatches`](super::MergePatches): each patch gets that of its place in a token.

mod cpu;
mod reference;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::{MergeOrder, check_grid};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::ops::check;
use crate::ops::sums::Checked;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `d_out: [images * (grid_h / factor) * (grid_w / factor), factor^2 * d]  ->  dx: [images * grid_h * grid_w, d]`, f32.
#[derive(Clone, Debug)]
pub struct MergePatchesGrad {
    /// Rows of patches in a picture, a multiple of `factor`.
    pub grid_h: usize,
    /// Columns of patches in a picture, a multiple of `factor`.
    pub grid_w: usize,
    /// Height and width of a block.
    pub factor: usize,
    /// Order within the block.
    pub order: MergeOrder,
    /// Gradient of the result.
    pub d_out: View,
    /// Gradient of the patches: added to.
    pub dx: View,
}

/// The key of a [`MergePatchesGrad`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct MergePatchesGradSpec {
    /// Pictures, bucketed.
    pub images: u32,
    /// Rows of patches.
    pub grid_h: u32,
    /// Columns of patches.
    pub grid_w: u32,
    /// Height and width of a block.
    pub factor: u32,
    /// Features of a patch.
    pub d: u32,
    /// Order within the block.
    pub order: MergeOrder,
}

impl Op for MergePatchesGrad {
    const NAME: &'static str = "merge_patches_grad";
    type Spec = MergePatchesGradSpec;

    fn spec(&self) -> Result<MergePatchesGradSpec, ShapeError> {
        let Self { grid_h, grid_w, factor, d_out, dx, .. } = self;
        check::rank("dx", dx, 2)?;
        let images = check_grid("dx", dx, *grid_h, *grid_w, *factor)?;
        let block = factor * factor;
        check::shape("d_out", d_out, &[dx.size(0) / block, dx.size(1) * block])?;
        check::dtype("d_out", d_out, DType::F32)?;
        Checked::new(d_out, []).sum("dx", Some(dx), dx.shape())?;
        Ok(MergePatchesGradSpec {
            images: bucket(images),
            grid_h: *grid_h as u32,
            grid_w: *grid_w as u32,
            factor: *factor as u32,
            d: dx.size(1) as u32,
            order: self.order,
        })
    }

    fn cost(&self) -> Cost {
        let (read, written) = (self.d_out.bytes() + self.dx.bytes(), self.dx.bytes());
        Cost { flops: self.dx.len() as u64, read, written }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.d_out);
        visit(Access::InOut, &mut self.dx);
    }

    fn of_spec(spec: &MergePatchesGradSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (images, d, factor) = (spec.images as usize, spec.d as usize, spec.factor as usize);
        let (patches, block) = (images * (spec.grid_h * spec.grid_w) as usize, factor * factor);
        Ok(MergePatchesGrad {
            grid_h: spec.grid_h as usize,
            grid_w: spec.grid_w as usize,
            factor,
            order: spec.order,
            d_out: operands.activations(&[patches / block.max(1), block * d], DType::F32)?,
            dx: operands.output(&[patches, d], DType::F32)?,
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
impl crate::wgpu::WgpuOp for MergePatchesGrad {
    fn wgpu_variants() -> crate::wgpu::WgpuRows<Self> {
        Err("not written: training runs on the CPU")
    }
}

#[cfg(feature = "cuda")]
impl crate::cuda::CudaOp for MergePatchesGrad {
    fn cuda_variants() -> crate::cuda::CudaRows<Self> {
        Err("not written: training runs on the CPU")
    }
}
