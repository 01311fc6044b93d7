//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{Pointwise, PointwiseSpec};
use crate::buffer::View;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows, value_type};
use crate::select::Variant;
use crate::spec::{Caps, KernelError};

impl CudaOp for Pointwise {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us, launch }])
    }
}

/// A launch, and the traffic.
fn est_us(spec: &PointwiseSpec, caps: &Caps) -> f32 {
    let (x, out) = (spec.x.size() as f32, spec.out.size() as f32);
    let tensors = x * (1.0 + f32::from(u8::from(spec.by))) + out * (1.0 + f32::from(u8::from(spec.add)));
    2.0 + spec.rows as f32 * spec.d as f32 * tensors / (caps.cuda.read_gbps * 1e3)
}

/// Threads of a block, and elements of a thread's vector where everything is aligned.
const THREADS: usize = 128;
const VEC: usize = 8;

/// `Params` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    col: u64,
    row: u64,
    by: u64,
    add: u64,
    out: u64,
    x_stride: i64,
    by_stride: i64,
    add_stride: i64,
    out_stride: i64,
    x_type: u32,
    col_type: u32,
    out_type: u32,
    d: u32,
    act: u32,
    scale: f32,
    softcap: f32,
    low: f32,
    high: f32,
    bounded: u32,
}

fn launch(op: &Pointwise, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let mut kernel = cx.kernel("ops/pointwise/rows.cu");
    let views = [&op.x, &op.out].into_iter().chain(&op.col).chain(&op.by).chain(&op.add);
    let vec = if d.is_multiple_of(VEC) && kernel.all_aligned(views)? { VEC } else { 1 };
    kernel.define("VEC", vec).dependent();
    let [low, high] = op.bounds.unwrap_or_default();
    let stride = |view: &Option<View>| view.as_ref().map_or(0, |view| view.stride(0) as i64);
    let params = Params {
        x: kernel.address(&op.x)?,
        col: kernel.address_or_null(op.col.as_ref())?,
        row: kernel.address_or_null(op.row.as_ref())?,
        by: kernel.address_or_null(op.by.as_ref())?,
        add: kernel.address_or_null(op.add.as_ref())?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as i64,
        by_stride: stride(&op.by),
        add_stride: stride(&op.add),
        out_stride: op.out.stride(0) as i64,
        x_type: value_type(Some(&op.x)),
        col_type: value_type(op.col.as_ref()),
        out_type: value_type(Some(&op.out)),
        d: d as u32,
        act: op.act as u32,
        scale: op.scale,
        softcap: op.softcap,
        low,
        high,
        bounded: op.bounds.is_some().into(),
    };
    let blocks = rows * d.div_ceil(THREADS * vec);
    kernel.launch([blocks as u32, 1, 1], THREADS as u32, &params)
}
