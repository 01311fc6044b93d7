//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{PatchEmbed, PatchEmbedSpec};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::{WeightParams, WgpuCx};
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for PatchEmbed {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[
            Variant {
                name: "gemm-128x128",
                reject: |spec, _| spec.w.reject_k_major(),
                est_us: |spec, _| est_us(spec, LARGE),
                launch: |op, cx| launch(op, cx, LARGE),
            },
            Variant {
                name: "gemm-64x64",
                reject: |spec, _| spec.w.reject_k_major(),
                est_us: |spec, _| est_us(spec, SMALL),
                launch: |op, cx| launch(op, cx, SMALL),
            },
        ])
    }
}

/// How `gemm.wgsl` is tiled.
#[derive(Clone, Copy)]
struct Tiling {
    /// Rows and columns of invocations; each makes 8 x 8 results.
    side: usize,
    /// Columns of patches and filters staged at once.
    depth: usize,
    /// Multiply-adds of a full device in a microsecond.
    per_us: f32,
}

const SMALL: Tiling = Tiling { side: 8, depth: 16, per_us: 4e6 };
const LARGE: Tiling = Tiling { side: 16, depth: 8, per_us: 5e6 };

impl Tiling {
    /// Rows and columns of the result that a workgroup makes.
    const fn tile(self) -> usize {
        8 * self.side
    }
}

/// Invocations that fill a device, about.
const FULL: f32 = 16384.0;

fn est_us(spec: &PatchEmbedSpec, tiling: Tiling) -> f32 {
    let (patch, tile) = (spec.patch.max(1), tiling.tile() as u32);
    let patches = spec.images * (spec.height / patch) * (spec.width / patch);
    let groups = (patches.div_ceil(tile) * spec.d.div_ceil(tile)) as f32;
    let waves = (groups * (tiling.side * tiling.side) as f32 / FULL).ceil();
    let wave = FULL * 64.0 * (3 * patch * patch) as f32;
    waves * wave / tiling.per_us
}

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

fn launch(op: &PatchEmbed, cx: &mut WgpuCx<'_>, tiling: Tiling) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    let (m, k) = (op.out.size(0), op.w.k());
    let (_, height, width) = op.size();
    let mut first = 0;
    for part in op.w.parts() {
        let mut kernel = cx.kernel("ops/patch_embed/gemm.wgsl");
        kernel.define("PIXELS", op.pixels.dtype()).define("OUT", op.out.dtype());
        kernel.define("SIDE", tiling.side).define("DEPTH", tiling.depth);
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
        let groups = |size: usize| size.div_ceil(tiling.tile()) as u32;
        kernel.dispatch([groups(part.rows), groups(m), 1])?;
        first += part.rows;
    }
    Ok(())
}
