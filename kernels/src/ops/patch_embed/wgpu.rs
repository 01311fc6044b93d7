//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{PatchEmbed, PatchEmbedSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::{WeightParams, WgpuCx};

impl WgpuOp for PatchEmbed {
    fn wgpu_variants() -> &'static [Variant<PatchEmbedSpec, WgpuLaunch<Self>>] {
        &[Variant { name: "gemm-64x64", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Rows and columns of the result that a workgroup makes: `TILE` of `gemm.wgsl`.
const TILE: usize = 64;

/// `Params` of `gemm.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    m: u32,
    n: u32,
    k: u32,
    patch: u32,
    height: u32,
    width: u32,
    /// Patches in a line of a picture, and in all of one.
    across: u32,
    per_image: u32,
    pixels: u32,
    mean: [f32; 3],
    /// `1 / std`.
    scale: [f32; 3],
    bias: u32,
    pos: u32,
    pos_stride: u32,
    positions: u32,
    pos_ids: u32,
    out: u32,
    out_stride: u32,
    w: WeightParams,
}

fn launch(op: &PatchEmbed, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    let (m, k) = (op.out.size(0), op.w.k());
    let (_, height, width) = op.size();
    let mut first = 0;
    for part in op.w.parts() {
        let mut kernel = cx.kernel("ops/patch_embed/gemm.wgsl");
        kernel.define("PIXELS", op.pixels.dtype()).define("OUT", op.out.dtype());
        let w = kernel.weight(op.w.format(), k, part, false)?;
        let mut params = Params {
            m: m as u32,
            n: part.rows as u32,
            k: k as u32,
            patch: op.patch as u32,
            height: height as u32,
            width: width as u32,
            across: (width / op.patch) as u32,
            per_image: op.patches_per_image() as u32,
            pixels: kernel.bind(3, &op.pixels)?,
            mean: op.mean,
            scale: op.std.map(|std| 1.0 / std),
            bias: 0,
            pos: 0,
            pos_stride: 0,
            positions: 0,
            pos_ids: 0,
            out: kernel.bind(7, &op.out)? + first as u32,
            out_stride: op.out.stride(0) as u32,
            w,
        };
        if let Some(bias) = &part.bias {
            kernel.define("BIAS", bias.dtype());
            params.bias = kernel.read(4, bias)?;
        }
        if let Some(pos) = &op.pos {
            kernel.define("POS", pos.dtype());
            params.pos = kernel.bind(5, pos)? + first as u32;
            (params.pos_stride, params.positions) = (pos.stride(0) as u32, pos.size(0) as u32);
        }
        if let (Some(ids), true) = (&op.pos_ids, op.pos.is_some()) {
            kernel.define("POS_IDS", true);
            params.pos_ids = kernel.bind(6, ids)?;
        }
        kernel.params(&params);
        kernel.dispatch([part.rows.div_ceil(TILE) as u32, m.div_ceil(TILE) as u32, 1])?;
        first += part.rows;
    }
    Ok(())
}
