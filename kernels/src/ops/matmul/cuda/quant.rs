//! `quant_mma.cu`: products with weights that are codes in groups on the tensor cores of every architecture.

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::params::{Epilogue, Row, WeightRows, rows_aligned, segments};
use crate::buffer::View;
use crate::cuda::{CudaCx, Kernel, value_type};
use crate::select::Reject;
use crate::spec::{Arch, Caps, Code, DType, Format, Grouped, KernelError, Zero};

pub(super) const MMA: Row = Row { name: "quant-mma", reject, est_us, launch };

/// Warps of a block.
const WARPS: usize = 8;
/// Bytes of a row of weights in a step.
const ROW_BYTES: usize = 64;

/// `Params` of `quant_x.cu` and `quant_wgmma_x.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct XParams {
    x: u64,
    out: u64,
    x_stride: i64,
    rows: i32,
    k: i32,
    steps: i32,
    tiles: i32,
    x_type: u32,
    x_aligned: u32,
}

impl XParams {
    /// x, laid out in `out` in steps along k and `tiles`, if any.
    pub fn new(
        kernel: &Kernel<'_, '_>,
        x: &View,
        out: &View,
        steps: usize,
        tiles: usize,
    ) -> Result<Self, KernelError> {
        let address = kernel.address(x)?;
        Ok(Self {
            x: address,
            out: kernel.address(out)?,
            x_stride: x.stride(0) as i64,
            rows: x.size(0) as i32,
            k: x.size(1) as i32,
            steps: steps as i32,
            tiles: tiles as i32,
            x_type: value_type(Some(x)),
            x_aligned: u32::from(rows_aligned(address, x)),
        })
    }
}

/// `Params` of `quant_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    w: WeightRows,
    up: WeightRows,
    e: Epilogue,
    k: i32,
    steps: i32,
    groups: i32,
    gated: u32,
}

/// What follows from format and types, as the kernels' defines name it.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub code: Code,
    /// Whether there are zero points that are codes, and such that are floats, or offsets.
    pub zero: bool,
    pub fractions: bool,
    /// Groups in a step, of which those of 16 count in twos.
    pub groups: usize,
    pub sixteens: usize,
    /// The type that is multiplied, and how many of it x, and weights, are sums of.
    pub dtype: DType,
    pub parts: usize,
    pub summands: usize,
}

impl Operands {
    /// Those of `quant_mma.cu`.
    fn of(spec: &MatmulSpec) -> Result<Self, Reject> {
        let Format::Grouped(Grouped { code, .. }) = spec.w else {
            return Err("for weights that are codes in groups".into());
        };
        Self::in_steps(spec, (ROW_BYTES * 8 / code.bits()) as u32)
    }

    /// Those of a kernel that takes `span` columns of k at a time.
    pub fn in_steps(spec: &MatmulSpec, span: u32) -> Result<Self, Reject> {
        let Format::Grouped(Grouped { code, group, zero, .. }) = spec.w else {
            return Err("for weights that are codes in groups".into());
        };
        if let Some(why) = spec.reject_fused() {
            return Err(why);
        }
        if spec.k == 0 {
            return Err("for k of 1 or more".into());
        }
        let groups = match group {
            0 => 1,
            group if group >= spec.k || group.is_multiple_of(span) => 1,
            32 | 64 => span / group,
            16 => span / 32,
            _ => return Err(format!("for groups of 16, 32, 64 and multiples of {span}").into()),
        };
        let sixteens = if group == 16 && spec.k > 16 { 2 } else { 1 };
        let fractions = matches!(zero, Zero::Float | Zero::Offset);
        if fractions && sixteens > 1 {
            return Err("for groups of 32 or more with zero points that are floats, or offsets".into());
        }
        let (dtype, parts) = match (spec.x, spec.math) {
            (DType::F16, _) => (DType::F16, 1),
            (DType::F32, math) if !math.takes_bf16() => (DType::BF16, 3),
            _ => (DType::BF16, 1),
        };
        let summands = match (code.halves(), dtype, spec.math.takes_bf16()) {
            (true, ..) => 1,
            (false, DType::F16, _) | (false, _, true) => 2,
            (false, _, false) => 3,
        };
        // Sums of four groups and of two terms are more than there are registers for.
        if summands > 1 && groups > 2 {
            return Err("for groups of 64 or more with codes whose values 16-bit floats do not hold".into());
        }
        Ok(Self {
            code,
            zero: zero == Zero::Codes,
            fractions,
            groups: groups as usize,
            sixteens,
            dtype,
            parts,
            summands,
        })
    }

    /// Whether weights are decoded to operands of their own, and the sums of their products with x are all that there is.
    pub fn are_plain(self) -> bool {
        !self.fractions && self.sixteens == 1 && self.summands == 1
    }

    /// Products that tensor cores make for each weight and each row of x.
    fn products(self) -> usize {
        self.parts * self.sixteens * (self.summands + usize::from(self.fractions))
    }

    /// Columns of k in a step.
    fn span(self) -> usize {
        ROW_BYTES * 8 / self.code.bits()
    }
}

/// How a product is cut into blocks.
#[derive(Clone, Copy)]
struct Plan {
    /// Eights of rows of x in a tile.
    nt: usize,
    /// Warps of a block with rows of their own.
    across: usize,
    stages: usize,
    /// Blocks: along the rows of w, along those of x.
    grid: [usize; 2],
    /// Bytes of shared memory.
    shared: usize,
}

/// The widest blocks of rows of weights that occupy the device, with the deepest ring that fits. `cols` columns of the result,
/// `rows` of them for each tile of 16 rows of weights.
fn plan(operands: Operands, m: usize, cols: usize, rows: usize, caps: &Caps) -> Plan {
    // As many as registers have room for.
    let most = match (operands.are_plain(), operands.sixteens, operands.parts) {
        (true, _, 1) => 8,
        (true, ..) | (false, 1, 1) => 4,
        _ => 2,
    };
    let judged = caps.rows(m);
    let nt = judged.div_ceil(8).next_power_of_two().clamp(2, most);
    let shared_memory = caps.cuda.shared_memory as usize;
    let cut = |across: usize| {
        let deep = WARPS / across;
        let stage = WARPS * 16 * ROW_BYTES + deep * operands.parts * (operands.span() / 32) * nt * 512;
        let sums = deep * 8 * nt * (16 * across + 4) * 4;
        // Two blocks on a multiprocessor where registers allow them, some 1 KiB for each aside.
        let room = if nt * operands.parts > 4 { shared_memory } else { shared_memory / 2 - 1024 };
        let stages = (room / stage).min(4);
        let grid = [cols.div_ceil(across * rows), judged.div_ceil(8 * nt)];
        Plan { nt, across, stages, grid, shared: (stages * stage).max(sums) }
    };
    let enough = |plan: &Plan| plan.grid[0] * plan.grid[1] >= caps.units && plan.stages >= 3;
    let [wide, middle, narrow] = [8, 4, 2].map(cut);
    let mut best = wide;
    for other in [middle, narrow] {
        if !enough(&best) && other.stages >= 3 {
            best = other;
        }
    }
    Plan { grid: [best.grid[0], m.div_ceil(8 * nt)], ..best }
}

fn reject(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    Operands::of(spec).err()
}

fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let Ok(operands) = Operands::of(spec) else { return f32::MAX };
    let (m, n, k) = (spec.m.max(1) as usize, spec.n as usize, spec.k as usize);
    let plan = plan(operands, m, n, 16, caps);
    let units = caps.units.max(1);
    // On Hopper these instructions reach little more than half of the rate that those of warpgroups do.
    let rate = caps.cuda.tensor_tflops * if caps.cuda.arch == Arch::Sm90a { 0.45 } else { 0.65 };
    // Decoding a row of weights costs as much as some rows of x.
    let rows = (plan.grid[1] * (8 * plan.nt * operands.products() + 16 * operands.summands)) as f64;
    let blocks = plan.grid[0] * plan.grid[1];
    let idle = blocks.next_multiple_of(units) as f64 / blocks.max(1) as f64;
    let flops = 2.0 * rows * n as f64 * k as f64 * idle.min(2.0);
    2.0 + caps.cuda.estimate_us(spec.w.bytes(n, k) as f64 / 0.8, flops, rate)
}

pub(super) fn launch(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (x, k) = (&op.x, op.w.k());
    if op.out.is_empty() {
        return Ok(());
    }
    let operands = Operands::of(&operands_spec(op)).map_err(|why| KernelError::Device(why.into_owned()))?;
    let rows = if op.gated { 8 } else { 16 };
    // x is laid out once: in tiles whose height follows from the rows of x alone.
    let nt = plan(operands, x.size(0), op.n_out(), rows, cx.caps()).nt;
    let laid_out = lay_out(x, operands, nt, cx)?;
    for segment in segments(op) {
        let plan = plan(operands, x.size(0), segment.cols, rows, cx.caps());
        let mut kernel = cx.kernel("ops/matmul/quant_mma.cu");
        operands.define(&mut kernel);
        kernel
            .define("NT", plan.nt)
            .define("ZERO", operands.zero)
            .define("FRACTIONS", operands.fractions)
            .define("SIXTEENS", operands.sixteens)
            .define("SUMMANDS", operands.summands)
            .define("ACROSS", plan.across)
            .define("STAGES", plan.stages);
        kernel.shared(plan.shared).dependent();
        let [w, up] = segment.weights(&kernel)?;
        let params = Params {
            x: kernel.address(&laid_out)?,
            w,
            up,
            e: segment.epilogue(&kernel)?,
            k: k as i32,
            steps: k.div_ceil(operands.span()) as i32,
            groups: op.w.format().groups(k) as i32,
            gated: u32::from(op.gated),
        };
        kernel.launch([plan.grid[0] as u32, plan.grid[1] as u32, 1], 32 * WARPS as u32, &params)?;
    }
    Ok(())
}

/// What of an op's spec `Operands` follow from.
pub(super) fn operands_spec(op: &Matmul) -> MatmulSpec {
    let k = op.w.k() as u32;
    MatmulSpec { k, x: op.x.dtype(), w: op.w.format(), math: op.math, ..MatmulSpec::default() }
}

impl Operands {
    pub fn define(self, kernel: &mut Kernel<'_, '_>) {
        kernel.define("T", self.dtype).define("CODE", format_args!("code_{}", self.code.folder()));
        kernel.define("GROUPS", self.groups).define("PARTS", self.parts);
    }
}

/// x in working memory (slot 0) as `quant.cuh` describes it.
fn lay_out(x: &View, operands: Operands, nt: usize, cx: &mut CudaCx<'_>) -> Result<View, KernelError> {
    let (m, k) = (x.size(0), x.size(1));
    let (steps, tiles) = (k.div_ceil(operands.span()), m.div_ceil(8 * nt));
    let pieces = tiles * steps * (operands.span() / 32) * nt;
    let out = cx.scratch(0, pieces * operands.parts * 256, operands.dtype)?;
    let mut kernel = cx.kernel("ops/matmul/quant_x.cu");
    operands.define(&mut kernel);
    kernel.define("NT", nt);
    kernel.dependent();
    let params = XParams::new(&kernel, x, &out, steps, tiles)?;
    kernel.launch([pieces.div_ceil(4) as u32, 1, 1], 128, &params)?;
    Ok(out)
}
