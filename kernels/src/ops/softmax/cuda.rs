//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::Softmax;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for Softmax {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 3.0, launch }])
    }
}

/// Threads that share a row.
const THREADS: usize = 256;

/// `Params` of `softmax.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    out: u64,
    x_stride: u64,
    out_stride: u64,
    d: u32,
    padding: u32,
}

fn launch(op: &Softmax, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    if op.x.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/softmax/softmax.cu");
    let vec = if d.is_multiple_of(8) && kernel.all_aligned([&op.x, &op.out])? { 8 } else { 1 };
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).define("VEC", vec);
    kernel.define("THREADS", THREADS).shared(THREADS / 32 * 4).dependent();
    let params = Params {
        x: kernel.address(&op.x)?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        d: d as u32,
        padding: 0,
    };
    kernel.launch([rows as u32, 1, 1], THREADS as u32, &params)
}
