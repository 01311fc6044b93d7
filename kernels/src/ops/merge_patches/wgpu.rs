//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{MergeOrder, MergePatches};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for MergePatches {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "copy", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Features that a workgroup copies: a multiple of four.
const COLUMNS: usize = 1024;

/// `Params` of `merge.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    patches: u32,
    d: u32,
    grid_w: u32,
    factor: u32,
    /// 1 for [`MergeOrder::ColumnFirst`].
    column_first: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &MergePatches, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (patches, d) = (op.x.size(0), op.x.size(1));
    if op.x.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/merge_patches/merge.wgsl");
    let params = Params {
        patches: patches as u32,
        d: d as u32,
        grid_w: op.grid_w as u32,
        factor: op.factor as u32,
        column_first: (op.order == MergeOrder::ColumnFirst).into(),
        x: kernel.bind(0, &op.x)?,
        x_stride: op.x.stride(0) as u32,
        out: kernel.bind(1, &op.out)?,
        out_stride: op.out.stride(0) as u32,
    };
    let fours = [params.d, params.x, params.x_stride, params.out, params.out_stride];
    let vec = fours.iter().all(|value| value.is_multiple_of(4));
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype());
    kernel.define("COLUMNS", COLUMNS).define("VEC", vec);
    kernel.params(&params);
    kernel.dispatch_linear(patches * d.div_ceil(COLUMNS))
}
