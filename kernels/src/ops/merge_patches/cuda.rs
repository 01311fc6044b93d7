//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{MergeOrder, MergePatches, MergePatchesSpec};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::{Caps, KernelError};

impl CudaOp for MergePatches {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "copy", reject: |_, _| None, est_us, launch }])
    }
}

/// A launch, and the traffic.
fn est_us(spec: &MergePatchesSpec, caps: &Caps) -> f32 {
    let features = spec.images as f32 * (spec.grid_h * spec.grid_w) as f32 * spec.d as f32;
    2.0 + features * (spec.x.size() + spec.out.size()) as f32 / (caps.cuda.read_gbps * 1e3)
}

/// Threads of a block.
const THREADS: usize = 256;
/// Features that a warp copies at most: four vectors a lane.
const COLUMNS: usize = 1024;

/// `Params` of `merge.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    out: u64,
    x_stride: u64,
    out_stride: u64,
    items: u32,
    d: u32,
    columns: u32,
    grid_w: u32,
    factor: u32,
    /// 1 for [`MergeOrder::ColumnFirst`].
    column_first: u32,
}

fn launch(op: &MergePatches, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (patches, d) = (op.x.size(0), op.x.size(1));
    if op.x.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/merge_patches/merge.cu");
    let aligned = d.is_multiple_of(8) && kernel.all_aligned([&op.x, &op.out])?;
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype());
    kernel.define("VEC", if aligned { 8 } else { 1 }).define("THREADS", THREADS).dependent();
    let items = patches * d.div_ceil(COLUMNS);
    let params = Params {
        x: kernel.address(&op.x)?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        items: items as u32,
        d: d as u32,
        columns: COLUMNS as u32,
        grid_w: op.grid_w as u32,
        factor: op.factor as u32,
        column_first: (op.order == MergeOrder::ColumnFirst).into(),
    };
    kernel.launch([items.div_ceil(THREADS / 32) as u32, 1, 1], THREADS as u32, &params)
}
