//! CUDA kernels: one source, whose rows are normalized by a warp or by a block.

use bytemuck::{Pod, Zeroable};

use super::{Norm, NormKind, NormSpec};
use crate::buffer::View;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::{Caps, DType, KernelError};

impl CudaOp for Norm {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us, launch }])
    }
}

/// A launch, and the traffic.
fn est_us(spec: &NormSpec, caps: &Caps) -> f32 {
    let (x, out) = (spec.x.size() as f32, spec.out.size() as f32);
    let tensors = x * (1.0 + f32::from(u8::from(spec.add)) + f32::from(u8::from(spec.sum))) + out;
    2.0 + spec.rows as f32 * spec.d as f32 * tensors / (caps.cuda.read_gbps * 1e3)
}

/// Elements of a thread's vector where everything is aligned.
const VEC: usize = 8;
/// Vectors that a thread keeps in registers at most.
const MOST_KEPT: usize = 4;

/// How rows are shared out among threads.
struct Shape {
    /// Threads of a block, and those that share a row.
    threads: usize,
    team: usize,
    /// Elements of a vector.
    vec: usize,
    /// Vectors that a thread keeps; 0 where it reads them again.
    kept: usize,
}

impl Shape {
    fn of(d: usize, aligned: bool) -> Self {
        if !aligned {
            let team = if d <= 512 { 32 } else { 256 };
            return Self { threads: 256, team, vec: 1, kept: 0 };
        }
        let vectors = d.div_ceil(VEC);
        if vectors <= 32 * MOST_KEPT {
            return Self { threads: 128, team: 32, vec: VEC, kept: vectors.div_ceil(32) };
        }
        let team = (vectors / 2).next_power_of_two().clamp(128, 512);
        let kept = vectors.div_ceil(team);
        Self { threads: team, team, vec: VEC, kept: if kept <= MOST_KEPT { kept } else { 0 } }
    }
}

/// `Params` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    add: u64,
    weight: u64,
    bias: u64,
    sum: u64,
    out: u64,
    x_stride: u64,
    add_stride: u64,
    sum_stride: u64,
    out_stride: u64,
    rows: u32,
    d: u32,
    /// `1 / d`.
    share: f32,
    weight_offset: f32,
    eps: f32,
    padding: u32,
}

pub(in crate::ops) fn launch(op: &Norm, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let mut kernel = cx.kernel("ops/norm/rows.cu");
    let views = [&op.x, &op.out].into_iter();
    let views = views.chain(&op.add).chain(&op.sum).chain(&op.weight).chain(&op.bias);
    let shape = Shape::of(d, d.is_multiple_of(VEC) && kernel.all_aligned(views)?);
    // Absent operands are null pointers, of a type that is there anyway.
    let weight = op.weight.as_ref().or(op.bias.as_ref()).map_or(DType::F32, View::dtype);
    let bias = op.bias.as_ref().map_or(weight, View::dtype);
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype());
    kernel.define("WEIGHT", weight).define("BIAS", bias).define("LAYER", op.kind == NormKind::Layer);
    kernel.define("THREADS", shape.threads).define("TEAM", shape.team);
    kernel.define("VEC", shape.vec).define("KEEP", shape.kept);
    kernel.shared(shape.threads / 32 * 4).dependent();
    let stride = |view: &Option<View>| view.as_ref().map_or(0, |view| view.stride(0) as u64);
    let params = Params {
        x: kernel.address(&op.x)?,
        add: kernel.address_or_null(op.add.as_ref())?,
        weight: kernel.address_or_null(op.weight.as_ref())?,
        bias: kernel.address_or_null(op.bias.as_ref())?,
        sum: kernel.address_or_null(op.sum.as_ref())?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        add_stride: stride(&op.add),
        sum_stride: stride(&op.sum),
        out_stride: op.out.stride(0) as u64,
        rows: rows as u32,
        d: d as u32,
        share: 1.0 / d as f32,
        weight_offset: op.weight_offset,
        eps: op.eps,
        padding: 0,
    };
    let blocks = rows.div_ceil(shape.threads / shape.team) as u32;
    kernel.launch([blocks, 1, 1], shape.threads as u32, &params)
}
