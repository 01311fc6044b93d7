//! CPU kernels: both products by the blocked product of many rows, with operands that are turned while they are packed.

use std::ops::Range;

use smallvec::SmallVec;

use super::{MatmulGrad, MatmulGradSpec};
use crate::buffer::View;
use crate::cpu::gemm::{
    DenseRows, GemmArgs, Operand, PanelSource, Part, ResidualRow, RowLoader, RowSource, gemm_exact,
    pack_rows, pieces,
};
use crate::cpu::isa::Isa;
use crate::cpu::rows::{InRows, OutRows};
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::ops::Activation;
use crate::ops::matmul::cpu::args::{self, Rows};
use crate::ops::matmul::cpu::reject_tiles;
use crate::quant::grouped::cpu::Decoded;
use crate::quant::with_decoder;
use crate::select::{Reject, Variant};
use crate::spec::{Caps, DType, Format, KernelError};

impl CpuOp for MatmulGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[
            Variant {
                name: "gemm-amx-f32",
                reject: |spec, caps| reject(spec, caps).or_else(|| reject_tiles(caps)),
                est_us: |spec, _| if spec.m < 32 { 2.0 } else { 0.5 },
                launch: launch::<true>,
            },
            Variant { name: "gemm-f32", reject, est_us: |_, _| 1.0, launch: launch::<false> },
        ]
    }
}

fn reject(spec: &MatmulGradSpec, _: &Caps) -> Option<Reject> {
    matches!(spec.w, Format::KMajor(..)).then(|| "for weights along k".into())
}

fn launch<const TILES: bool>(op: &MatmulGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (m, n, k) = (op.x.size(0), op.w.n(), op.w.k());
    if m == 0 || n == 0 {
        return Ok(());
    }
    let dz = args::input(&op.dz, cx)?;
    if let Some(dx) = op.dx.as_ref().filter(|_| k > 0) {
        args::with_parts(&op.w, cx, |_, parts| {
            let rows = op.w.parts().iter().map(|part| part.rows);
            let turned = TurnedWeights { parts: rows.zip(parts.iter().copied()).collect() };
            add_product(cx, TILES, (m, n, k), dz, None, &turned, dx)
        })?;
    }
    let x = Turned(floats(args::input(&op.x, cx)?));
    let mut first = 0;
    for (grad, part) in op.parts.iter().zip(op.w.parts()) {
        let ptr = dz.ptr.cast::<f32>().wrapping_add(first);
        let rows = TurnedRows { isa: cx.isa, rows: DenseRows { ptr, row_stride: dz.stride } };
        if let Some(weight) = grad.weight.as_ref().filter(|_| k > 0) {
            add_product(cx, TILES, (part.rows, m, k), dz, Some(&rows), &x, weight)?;
        }
        if let Some(bias) = &grad.bias {
            add_columns(cx, &op.dz.narrow(1, first, part.rows)?, bias)?;
        }
        first += part.rows;
    }
    Ok(())
}

fn floats(matrix: Operand) -> DenseRows<f32> {
    DenseRows { ptr: matrix.ptr.cast(), row_stride: matrix.stride }
}

/// `out: [m, n] += x w`, where `w: [k, n]` is what `source` turns; `rows` are those of `x` where it is not stored.
fn add_product(
    cx: &CpuCx,
    tiles: bool,
    (m, k, n): (usize, usize, usize),
    x: Operand,
    rows: Option<&dyn RowSource>,
    source: &dyn PanelSource,
    out: &View,
) -> Result<(), KernelError> {
    let args = GemmArgs {
        m,
        k,
        x,
        rows,
        parts: &[Part { rows: n, source, bias: None }],
        act: Activation::None,
        gated: false,
        residual: Some(args::input(out, cx)?),
        residual_row: ResidualRow::Same,
        out: args::output(out, cx)?,
    };
    // SAFETY: `spec` checked the shapes, and that `out` shares no memory with what is read; it is the residual itself.
    unsafe { gemm_exact(cx.isa, &cx.pool, &args, tiles) }
    Ok(())
}

/// The columns of a matrix as rows of weights: a panel of them is a run of each of its rows.
pub(in crate::ops) struct Turned<L>(pub L);

// SAFETY: only reads, of memory that lives as long as the op.
unsafe impl<L> Sync for Turned<L> {}

impl<L: RowLoader> PanelSource for Turned<L> {
    unsafe fn pack(
        &self,
        isa: Isa,
        row: usize,
        rows: usize,
        col: usize,
        k: usize,
        to: *mut f32,
        stride: usize,
    ) {
        // SAFETY: as the caller vouches.
        unsafe { pack_turned(isa, self.0, row, rows, col..col + k, to, stride) }
    }
}

/// The same of weights in any format, stacked from parts.
struct TurnedWeights {
    parts: SmallVec<[(usize, Rows); 3]>,
}

// SAFETY: as above.
unsafe impl Sync for TurnedWeights {}

impl PanelSource for TurnedWeights {
    fn pieces(&self) -> usize {
        let of = |rows: &Rows| match rows {
            Rows::Dense(_, matrix) => pieces(matrix.dtype),
            Rows::Grouped(_) | Rows::KMajor(_) => pieces(DType::F32),
        };
        self.parts.iter().map(|(_, rows)| of(rows)).max().unwrap_or(1)
    }

    unsafe fn pack(
        &self,
        isa: Isa,
        row: usize,
        rows: usize,
        col: usize,
        k: usize,
        to: *mut f32,
        stride: usize,
    ) {
        let mut first = 0;
        for (height, part) in &self.parts {
            let (from, end) = (col.max(first), (col + k).min(first + height));
            if from < end {
                let (lines, to) = (from - first..end - first, to.wrapping_add((from - col) * stride));
                // SAFETY: as the caller vouches; the lines are of this part.
                unsafe { pack_part(isa, part, row, rows, lines, to, stride) }
            }
            first += height;
        }
    }
}

/// # Safety
/// As [`pack_turned`].
unsafe fn pack_part(
    isa: Isa,
    part: &Rows,
    row: usize,
    rows: usize,
    lines: Range<usize>,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match part {
            Rows::Dense(_, matrix) => {
                let (ptr, row_stride) = (matrix.ptr, matrix.stride);
                match matrix.dtype {
                    DType::BF16 => {
                        let loader = DenseRows { ptr: ptr.cast::<half::bf16>(), row_stride };
                        pack_turned(isa, loader, row, rows, lines, to, stride);
                    }
                    DType::F16 => {
                        let loader = DenseRows { ptr: ptr.cast::<half::f16>(), row_stride };
                        pack_turned(isa, loader, row, rows, lines, to, stride);
                    }
                    _ => pack_turned(isa, floats(*matrix), row, rows, lines, to, stride),
                }
            }
            Rows::Grouped(codes) => with_decoder!(codes.code, decoder => {
                pack_turned(isa, Decoded(*codes, decoder), row, rows, lines, to, stride);
            }),
            Rows::KMajor(_) => unreachable!("rejected"),
        }
    }
}

/// Writes value (`line`, `row + r`) of a matrix to `to[(line - lines.start) * stride + r]`, `r` below `rows`.
///
/// # Safety
/// The values exist; `row` is a multiple of the level's lanes, `rows` at most that many; `to` is writable at those places.
unsafe fn pack_turned<L: RowLoader>(
    isa: Isa,
    loader: L,
    row: usize,
    rows: usize,
    lines: Range<usize>,
    to: *mut f32,
    stride: usize,
) {
    isa.run(PackTurned { loader, row, rows, lines, to, stride });
}

struct PackTurned<L> {
    loader: L,
    row: usize,
    rows: usize,
    lines: Range<usize>,
    to: *mut f32,
    stride: usize,
}

impl<L: RowLoader> Kernel for PackTurned<L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { loader, row, rows, lines, to, stride } = self;
        for (i, line) in lines.enumerate() {
            // SAFETY: as the caller of `pack_turned` vouches.
            unsafe {
                let to = to.add(i * stride);
                if rows == S::LANES {
                    loader.prefetch(s, line + 8, row);
                    s.store(to, loader.load(s, line, row));
                } else {
                    s.store_n(to, loader.load_n(s, line, row, rows), rows);
                }
            }
        }
    }
}

/// The columns of a matrix of f32 as rows that are multiplied.
pub(in crate::ops) struct TurnedRows {
    pub isa: Isa,
    pub rows: DenseRows<f32>,
}

// SAFETY: as above.
unsafe impl Sync for TurnedRows {}

impl RowSource for TurnedRows {
    unsafe fn pack(&self, row: usize, rows: usize, col: usize, n: usize, to: *mut f32, stride: usize) {
        let lanes = self.isa.lanes();
        for j in (0..n).step_by(lanes) {
            // SAFETY: as the caller vouches.
            unsafe { pack_rows(self.isa, self.rows, col + j, lanes.min(n - j), row, rows, to.add(j), stride) }
        }
    }
}

/// Columns that a thread takes at least: whole cache lines of each row.
const COLUMNS: usize = 64;

/// `sums += x[0] + x[1] + ...`, each column by one thread, from the first row on.
fn add_columns(cx: &CpuCx, x: &View, sums: &View) -> Result<(), KernelError> {
    let (rows, cols) = (x.size(0), x.size(1));
    let (from, before, to) = (InRows::new(cx, x)?, InRows::new(cx, sums)?, OutRows::new(cx, sums)?);
    let share = cols.div_ceil(cx.pool.threads()).next_multiple_of(COLUMNS);
    let grain = if rows * cols < 1 << 14 { cols } else { share };
    cx.pool.run_ranges(cols, grain, |range, _| sum_columns(cx.isa, &from, rows, range, &before, &to));
    Ok(())
}

crate::simd_fn! {
    /// The columns of `to` are this thread's alone.
    fn sum_columns<S>(
        s: S,
        x: &InRows<'_>,
        rows: usize,
        cols: Range<usize>,
        before: &InRows<'_>,
        to: &OutRows<'_>,
    ) {
        for at in cols.clone().step_by(S::LANES) {
            let n = S::LANES.min(cols.end - at);
            // SAFETY: `spec` checked rows and columns.
            unsafe {
                let mut sum = before.row(0).load(s, at, n);
                for row in 0..rows {
                    sum = s.add(sum, x.row(row).load(s, at, n));
                }
                to.row(0).store(s, at, sum, n);
            }
        }
    }
}
