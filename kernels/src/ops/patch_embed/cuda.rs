//! CUDA kernels: tensor cores for bytes and filters of 16 bits, multiply-adds of f32 for everything else.

use bytemuck::{Pod, Zeroable};

use super::{PatchEmbed, PatchEmbedSpec};
use crate::buffer::{View, WeightPart};
use crate::cuda::{CudaCx, Kernel, WeightParams, value_type};
use crate::cuda::{CudaOp, CudaRows};
use crate::select::{Reject, Variant};
use crate::spec::{Caps, DType, Format, KernelError};

impl CudaOp for PatchEmbed {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[
            Variant { name: "gemm-mma", reject: mma_reject, est_us: mma_us, launch: mma },
            Variant {
                name: "gemm",
                reject: |spec, _| spec.w.reject_k_major(),
                est_us: gemm_us,
                launch: gemm,
            },
        ])
    }
}

/// Patches and filters of a block's tile.
const GEMM_TILE: usize = 64;
const MMA_TILE: usize = 128;
/// Bytes of shared memory: tiles of `mma.cu`, four of filters and two of patches, and corners.
const MMA_SHARED: usize = 6 * MMA_TILE * 32 * 2 + MMA_TILE * 4;
/// As above of `gemm.cu`: two tiles of 16 lines, and corners.
const GEMM_SHARED: usize = 2 * 16 * (GEMM_TILE + 4) * 4 + GEMM_TILE * 8;
/// Threads of a block of `shift.cu`.
const SHIFT_THREADS: usize = 128;

fn mma_reject(spec: &PatchEmbedSpec, _: &Caps) -> Option<Reject> {
    if spec.pixels != DType::U8 {
        return Some("pixels are not bytes".into());
    }
    if !matches!(spec.w, Format::Dense(DType::BF16 | DType::F16)) {
        return Some(format!("filters are {}, not bf16 or f16", spec.w).into());
    }
    let bytes = 3 * u64::from(spec.images) * u64::from(spec.height) * u64::from(spec.width);
    (bytes > u64::from(u32::MAX)).then(|| "the pictures are more than 4 GiB".into())
}

/// Time of `flops` at a rate, in waves of tiles over the multiprocessors, two each; and launches.
fn tiles_us(spec: &PatchEmbedSpec, caps: &Caps, tile: usize, tflops: f32) -> f32 {
    let patch = spec.patch.max(1);
    let patches = (spec.images * (spec.height / patch) * (spec.width / patch)) as usize;
    let full = 2 * caps.units.max(1);
    let waves = (patches.div_ceil(tile) * (spec.d as usize).div_ceil(tile)).div_ceil(full);
    let flops = 2.0 * (waves * full * tile * tile) as f32 * (3 * patch * patch) as f32;
    flops / (tflops * 1e6)
}

fn mma_us(spec: &PatchEmbedSpec, caps: &Caps) -> f32 {
    4.0 + tiles_us(spec, caps, MMA_TILE, 0.5 * caps.cuda.tensor_tflops)
}

fn gemm_us(spec: &PatchEmbedSpec, caps: &Caps) -> f32 {
    2.0 + tiles_us(spec, caps, GEMM_TILE, 0.5 * caps.cuda.f32_tflops)
}

/// `Pictures` of `patches.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pictures {
    height: u32,
    width: u32,
    patch: u32,
    across: u32,
    per_image: u32,
    patches: u32,
}

impl Pictures {
    fn of(op: &PatchEmbed) -> Self {
        let (_, height, width) = op.size();
        Self {
            height: height as u32,
            width: width as u32,
            patch: op.patch as u32,
            across: (width / op.patch) as u32,
            per_image: op.patches_per_image() as u32,
            patches: op.out.size(0) as u32,
        }
    }
}

/// `Positions` of `patches.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Positions {
    rows: u64,
    ids: u64,
    stride: u64,
    count: u32,
    kind: u32,
}

impl Positions {
    /// Those of the features from `first` on.
    fn of(op: &PatchEmbed, kernel: &Kernel<'_, '_>, first: usize) -> Result<Self, KernelError> {
        let Some(pos) = op.pos.as_ref().filter(|pos| pos.size(0) > 0) else {
            return Ok(Self::default());
        };
        Ok(Self {
            rows: kernel.address(pos)? + (first * pos.dtype().size()) as u64,
            ids: kernel.address_or_null(op.pos_ids.as_ref())?,
            stride: pos.stride(0) as u64,
            count: pos.size(0) as u32,
            kind: value_type(Some(pos)),
        })
    }
}

/// Address of the result's features from `first` on.
fn out_from(op: &PatchEmbed, kernel: &Kernel<'_, '_>, first: usize) -> Result<u64, KernelError> {
    Ok(kernel.address(&op.out)? + (first * op.out.dtype().size()) as u64)
}

/// `1 / std`, or 1 for pixels that are taken as they are.
fn scale(op: &PatchEmbed) -> [f32; 3] {
    op.std.map(|std| 1.0 / std)
}

/// Parts of the filters, each with the number of its first feature.
fn parts(op: &PatchEmbed) -> impl Iterator<Item = (usize, &WeightPart)> {
    let parts = op.w.parts().iter().filter(|part| part.rows > 0);
    parts.scan(0, |next, part| {
        let first = *next;
        *next += part.rows;
        Some((first, part))
    })
}

/// `Params` of `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmParams {
    pixels: u64,
    w: WeightParams,
    bias: u64,
    positions: Positions,
    out: u64,
    out_stride: u64,
    pictures: Pictures,
    n: u32,
    k: u32,
    bias_type: u32,
    out_type: u32,
    mean: [f32; 3],
    scale: [f32; 3],
}

fn gemm(op: &PatchEmbed, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    parts(op).try_for_each(|(first, part)| gemm_part(op, cx, first, part))
}

fn gemm_part(
    op: &PatchEmbed,
    cx: &mut CudaCx<'_>,
    first: usize,
    part: &WeightPart,
) -> Result<(), KernelError> {
    let mut kernel = cx.kernel("ops/patch_embed/gemm.cu");
    kernel.define("PIXEL", op.pixels.dtype()).shared(GEMM_SHARED).dependent();
    let w = kernel.weight(op.w.format(), op.w.k(), part)?;
    let params = GemmParams {
        pixels: kernel.address(&op.pixels)?,
        w,
        bias: kernel.address_or_null(part.bias.as_ref())?,
        positions: Positions::of(op, &kernel, first)?,
        out: out_from(op, &kernel, first)?,
        out_stride: op.out.stride(0) as u64,
        pictures: Pictures::of(op),
        n: part.rows as u32,
        k: op.w.k() as u32,
        bias_type: value_type(part.bias.as_ref()),
        out_type: value_type(Some(&op.out)),
        mean: op.mean,
        scale: scale(op),
    };
    let tiles = |size: usize| size.div_ceil(GEMM_TILE) as u32;
    kernel.launch([tiles(part.rows), tiles(op.out.size(0)), 1], 128, &params)
}

/// `Params` of `shift.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ShiftParams {
    w: u64,
    bias: u64,
    shift: u64,
    w_stride: u64,
    n: u32,
    area: u32,
    mean: [f32; 3],
    scale: [f32; 3],
}

/// `Params` of `mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MmaParams {
    pixels: u64,
    w: u64,
    shift: u64,
    positions: Positions,
    out: u64,
    w_stride: u64,
    out_stride: u64,
    pictures: Pictures,
    n: u32,
    rescale: [f32; 3],
}

fn mma(op: &PatchEmbed, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    parts(op).try_for_each(|(first, part)| mma_part(op, cx, first, part))
}

fn mma_part(
    op: &PatchEmbed,
    cx: &mut CudaCx<'_>,
    first: usize,
    part: &WeightPart,
) -> Result<(), KernelError> {
    let shift = cx.scratch(0, part.rows, DType::F32)?;
    let plane = &part.planes[0];
    let mut kernel = cx.kernel("ops/patch_embed/shift.cu");
    if !kernel.aligned(plane, 16)? {
        return gemm_part(op, cx, first, part);
    }
    kernel.define("W", plane.dtype()).define("THREADS", SHIFT_THREADS).dependent();
    kernel.define("BIAS", part.bias.as_ref().map_or(plane.dtype(), View::dtype));
    let params = ShiftParams {
        w: kernel.address(plane)?,
        bias: kernel.address_or_null(part.bias.as_ref())?,
        shift: kernel.address(&shift)?,
        w_stride: plane.stride(0) as u64,
        n: part.rows as u32,
        area: (op.patch * op.patch) as u32,
        mean: op.mean,
        scale: scale(op),
    };
    let blocks = part.rows.div_ceil(SHIFT_THREADS / 32) as u32;
    kernel.launch([blocks, 1, 1], SHIFT_THREADS as u32, &params)?;

    let mut kernel = cx.kernel("ops/patch_embed/mma.cu");
    kernel.define("W", plane.dtype()).define("PATCH", op.patch).define("OUT", op.out.dtype());
    kernel.define("POS", op.pos.as_ref().map_or(op.out.dtype(), View::dtype));
    let in_pairs = |view: &View| kernel.aligned(view, 2 * view.dtype().size());
    let mut pairs = part.rows.is_multiple_of(2) && first.is_multiple_of(2) && in_pairs(&op.out)?;
    if let Some(pos) = &op.pos {
        pairs = pairs && in_pairs(pos)?;
    }
    kernel.define("PAIRS", pairs).shared(MMA_SHARED).dependent();
    let [r, g, b] = op.std;
    let params = MmaParams {
        pixels: kernel.address(&op.pixels)?,
        w: kernel.address(plane)?,
        shift: kernel.address(&shift)?,
        positions: Positions::of(op, &kernel, first)?,
        out: out_from(op, &kernel, first)?,
        w_stride: plane.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        pictures: Pictures::of(op),
        n: part.rows as u32,
        rescale: [g / r, b / g, 1.0 / b],
    };
    let tiles = |size: usize| size.div_ceil(MMA_TILE) as u32;
    kernel.launch([tiles(part.rows), tiles(op.out.size(0)), 1], 256, &params)
}
