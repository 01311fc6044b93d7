//! CPU kernel: logits block of rows by block of rows by the blocked product, in working memory; what rows and columns need of each other
//! is a number a row and a column.
//!
//! 1. For each block: its logits, the loss of each row or the logarithm of its sum, and the same of the columns as far as they have come.
//! 2. For each block, where gradients are wanted: its logits again unless there is but one, their gradients in the same place, and
//!    the products of these with the vectors of both sides.

use std::ops::Range;

use super::{ContrastiveKind, ContrastiveLoss};
use crate::buffer::View;
use crate::cpu::gemm::{
    Dense, DenseRows, GemmArgs, Operand, OperandMut, PanelSource, Part, ResidualRow, RowSource, gemm,
};
use crate::cpu::rows::grain;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{MAX_LANES, math};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::ops::Activation;
use crate::ops::matmul::cpu::args;
use crate::ops::matmul::grad::{Turned, TurnedRows};
use crate::select::Variant;
use crate::spec::{DType, KernelError};

impl CpuOp for ContrastiveLoss {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "blocks-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Logits in memory at once: what the caches of a core or two hold.
const MOST: usize = 1 << 20;
/// Vectors of columns that a thread goes down at a time.
const WIDE: usize = 4;
/// Columns that a thread takes at least.
const COLUMNS: usize = WIDE * MAX_LANES;
/// In the place of a logit that is looked at by itself: neither its loss nor its gradient is more than zero.
const ASIDE: f32 = -1e30;

/// Memory and numbers of one op.
#[derive(Clone, Copy)]
struct Call {
    kind: ContrastiveKind,
    n: usize,
    factor: f32,
    bias: f32,
    /// Logits of a block, then their gradients, `[rows, stride]`.
    z: *mut f32,
    stride: usize,
    /// Of each row: the logarithm of its sum, or its loss.
    of_rows: *mut f32,
    /// Of each row: the logit of its own column.
    own: *mut f32,
    /// Of each column: the largest logit, then the logarithm of the sum.
    of_cols: *mut f32,
    /// Of each column: the sum of powers about the largest logit.
    sums: *mut f32,
    /// Of each row: sums for the gradients of scale and bias, `[n, 2]`.
    totals: *mut f32,
}

// SAFETY: threads write different rows, or different columns, of this memory.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

/// Arrays of a number a row or column, [`Call::totals`] counted twice.
const ARRAYS: usize = 6;

fn launch(op: &ContrastiveLoss, cx: &CpuCx) -> Result<(), KernelError> {
    let n = op.a.size(0);
    let stride = n.next_multiple_of(MAX_LANES).max(MAX_LANES);
    let most = (MOST / stride).clamp(1, n.max(1));
    let mut scratch = Scratch::new();
    let memory = scratch.slice::<f32>(most * stride + ARRAYS * stride);
    let (z, arrays) = memory.split_at_mut(most * stride);
    let (z, arrays) = (z.as_mut_ptr(), arrays.as_mut_ptr());
    let array = |number: usize| arrays.wrapping_add(number * stride);
    let call = Call {
        kind: op.kind,
        n,
        factor: f64::from(number(&op.scale, cx)?).exp() as f32,
        bias: op.bias.as_ref().map_or(Ok(0.0), |bias| number(bias, cx))?,
        z,
        stride,
        of_rows: array(0),
        own: array(1),
        of_cols: array(2),
        sums: array(3),
        totals: array(4),
    };
    for col in 0..n {
        // SAFETY: there are `stride` of each, and no other thread yet.
        unsafe {
            *call.of_cols.add(col) = f32::NEG_INFINITY;
            *call.sums.add(col) = 0.0;
        }
    }
    let blocks = || (0..n).step_by(most).map(|first| first..n.min(first + most));
    for rows in blocks() {
        logits(op, cx, &call, &rows)?;
    }
    // SAFETY: the memory holds `n` numbers each, and no other thread writes them now.
    let array = |of: *mut f32, len: usize| unsafe { std::slice::from_raw_parts_mut(of, len) };
    let softmax = call.kind == ContrastiveKind::Softmax;
    if softmax {
        for (most, sum) in array(call.of_cols, n).iter_mut().zip(array(call.sums, n)) {
            *most += sum.ln();
        }
    }
    let sum = |of: *mut f32| array(of, n).iter().map(|&value| f64::from(value)).sum::<f64>();
    let loss = match softmax {
        true => 0.5 * (sum(call.of_rows) + sum(call.of_cols) - 2.0 * sum(call.own)),
        false => sum(call.of_rows),
    };
    add(&op.loss, cx, loss / n.max(1) as f64, false)?;
    if !op.has_gradients() || n == 0 {
        return Ok(());
    }
    for rows in blocks() {
        if most < n {
            logits(op, cx, &call, &rows)?;
        }
        let count = rows.len();
        cx.pool.run_ranges(count, grain(count, 8 * n, cx.pool.threads()), |range, _| {
            gradients(cx.isa, &call, rows.start, range);
        });
        vectors(op, cx, &call, &rows)?;
    }
    for (number, view) in [&op.d_scale, &op.d_bias].into_iter().enumerate() {
        let totals = array(call.totals, 2 * n).iter().skip(number).step_by(2);
        if let Some(view) = view {
            add(view, cx, totals.map(|&total| f64::from(total)).sum(), true)?;
        }
    }
    Ok(())
}

/// The one number of a view.
fn number(view: &View, cx: &CpuCx) -> Result<f32, KernelError> {
    // SAFETY: `spec` checked that there is one element.
    Ok(unsafe { *cx.input::<f32>(view)? })
}

/// Writes the one number of a view, or adds to it.
fn add(view: &View, cx: &CpuCx, value: f64, more: bool) -> Result<(), KernelError> {
    let to = cx.output::<f32>(view)?;
    // SAFETY: as above.
    unsafe {
        let before = if more { f64::from(*to) } else { 0.0 };
        *to = (before + value) as f32;
    }
    Ok(())
}

/// Rows of a matrix of f32 from `first` on.
fn rows_from(view: &View, cx: &CpuCx, first: usize) -> Result<DenseRows<f32>, KernelError> {
    let ptr = cx.input::<f32>(view)?.wrapping_add(first * view.stride(0));
    Ok(DenseRows { ptr, row_stride: view.stride(0) })
}

fn operand(rows: DenseRows<f32>) -> Operand {
    Operand { ptr: rows.ptr.cast(), dtype: DType::F32, stride: rows.row_stride }
}

/// The logits of some rows, and what their rows and columns come to.
fn logits(op: &ContrastiveLoss, cx: &CpuCx, call: &Call, rows: &Range<usize>) -> Result<(), KernelError> {
    let (n, d, count) = (call.n, op.a.size(1), rows.len());
    let x = operand(rows_from(&op.a, cx, rows.start)?);
    // SAFETY: `spec` checked that the matrix has `n` rows of `d` values.
    let source = unsafe { Dense::new(operand(rows_from(&op.b, cx, 0)?)) };
    let z = OperandMut { ptr: call.z.cast(), dtype: DType::F32, stride: call.stride };
    product(cx, (count, d, n), x, None, &source, None, z);
    cx.pool.run_ranges(count, grain(count, 8 * n, cx.pool.threads()), |range, _| {
        of_rows(cx.isa, call, rows.start, range);
    });
    if call.kind == ContrastiveKind::Softmax {
        let share = n.div_ceil(cx.pool.threads()).next_multiple_of(COLUMNS);
        cx.pool.run_ranges(n, share, |range, _| of_columns(cx.isa, call, count, range));
    }
    Ok(())
}

/// What the gradients of the logits of some rows give to those of the vectors.
fn vectors(op: &ContrastiveLoss, cx: &CpuCx, call: &Call, rows: &Range<usize>) -> Result<(), KernelError> {
    let (n, d, count) = (call.n, op.a.size(1), rows.len());
    if d == 0 {
        return Ok(());
    }
    let dz = DenseRows { ptr: call.z.cast_const(), row_stride: call.stride };
    if let Some(da) = &op.da {
        let out = args::output(&da.narrow(0, rows.start, count)?, cx)?;
        product(cx, (count, n, d), operand(dz), None, &Turned(rows_from(&op.b, cx, 0)?), None, out);
    }
    if let Some(db) = &op.db {
        let source = Turned(rows_from(&op.a, cx, rows.start)?);
        let before = if rows.start > 0 { Some(args::input(db, cx)?) } else { None };
        let turned = TurnedRows { isa: cx.isa, rows: dz };
        product(cx, (n, count, d), operand(dz), Some(&turned), &source, before, args::output(db, cx)?);
    }
    Ok(())
}

/// `out: [m, n] = before + x w^T`, where `source` has the `n` rows of `w`, of `k` values; `rows` are those of `x` where it is not stored.
fn product(
    cx: &CpuCx,
    (m, k, n): (usize, usize, usize),
    x: Operand,
    rows: Option<&dyn RowSource>,
    source: &dyn PanelSource,
    before: Option<Operand>,
    out: OperandMut,
) {
    let args = GemmArgs {
        m,
        k,
        x,
        rows,
        parts: &[Part { rows: n, source, bias: None }],
        act: Activation::None,
        gated: false,
        residual: before,
        residual_row: ResidualRow::Same,
        out,
    };
    // SAFETY: `spec` checked the shapes, and that results share no memory with what is read; `before` is `out` itself, and the
    // logits are working memory with `call.stride` values for each row.
    unsafe { gemm(cx.isa, &cx.pool, &args) }
}

crate::simd_fn! {
    /// Turns products to logits, and sums up each row. The rows, numbered from `first` on as rows of `a`, are this thread's alone.
    fn of_rows<S>(s: S, call: &Call, first: usize, rows: Range<usize>) {
        let (n, factor, bias) = (call.n, s.splat(call.factor), s.splat(call.bias));
        for i in rows {
            let row = first + i;
            // SAFETY: the block has this row of `n` logits; the arrays have a number for it.
            unsafe {
                let z = call.z.add(i * call.stride);
                let lowest = s.splat(f32::NEG_INFINITY);
                let mut most = [lowest; 2];
                for (i, at) in (0..n).step_by(S::LANES).enumerate() {
                    let len = S::LANES.min(n - at);
                    let v = s.fma(s.load_n(z.add(at), len), factor, bias);
                    s.store_n(z.add(at), v, len);
                    let v = if len == S::LANES { v } else { s.select(s.first(len), v, lowest) };
                    most[i % 2] = s.max(most[i % 2], v);
                }
                let own = *z.add(row);
                *call.own.add(row) = own;
                let mut sums = [s.zero(); 2];
                *call.of_rows.add(row) = match call.kind {
                    ContrastiveKind::Softmax => {
                        let most = s.max_lane(s.max(most[0], most[1]));
                        let about = s.splat(most);
                        for (i, at) in (0..n).step_by(S::LANES).enumerate() {
                            let len = S::LANES.min(n - at);
                            let v = math::exp(s, s.sub(s.load_n(z.add(at), len), about));
                            let v = if len == S::LANES { v } else { s.select(s.first(len), v, s.zero()) };
                            sums[i % 2] = s.add(sums[i % 2], v);
                        }
                        s.sum(s.add(sums[0], sums[1])).ln() + most
                    }
                    ContrastiveKind::Sigmoid => {
                        *z.add(row) = ASIDE;
                        for (i, at) in (0..n).step_by(S::LANES).enumerate() {
                            let len = S::LANES.min(n - at);
                            let x = s.load_n(z.add(at), len);
                            let v = s.add(s.max(x, s.zero()), math::ln_1p(s, math::exp(s, s.neg(s.abs(x)))));
                            let v = if len == S::LANES { v } else { s.select(s.first(len), v, s.zero()) };
                            sums[i % 2] = s.add(sums[i % 2], v);
                        }
                        *z.add(row) = own;
                        let x = -f64::from(own);
                        let of_own = x.max(0.0) + (-x.abs()).exp().ln_1p();
                        (f64::from(s.sum(s.add(sums[0], sums[1]))) + of_own) as f32
                    }
                };
            }
        }
    }
}

crate::simd_fn! {
    /// Takes the first `rows` rows of the block into the sums of columns. The columns are this thread's alone.
    fn of_columns<S>(s: S, call: &Call, rows: usize, cols: Range<usize>) {
        for wide in cols.clone().step_by(WIDE * S::LANES) {
            let len = |k: usize| S::LANES.min(cols.end.saturating_sub(wide + k * S::LANES));
            let at = |of: *mut f32, k: usize| of.wrapping_add(wide + k * S::LANES);
            // SAFETY: the block has these rows, the arrays these columns; nothing is read where `len` is 0.
            unsafe {
                let mut most = [s.zero(); WIDE];
                for (k, most) in most.iter_mut().enumerate() {
                    *most = s.load_n(at(call.of_cols, k), len(k));
                }
                let before = most;
                for row in 0..rows {
                    let z = call.z.add(row * call.stride);
                    for (k, most) in most.iter_mut().enumerate() {
                        *most = s.max(*most, s.load_n(at(z, k), len(k)));
                    }
                }
                let mut sums = [s.zero(); WIDE];
                for (k, sum) in sums.iter_mut().enumerate() {
                    let kept = math::exp(s, s.sub(before[k], most[k]));
                    *sum = s.mul(s.load_n(at(call.sums, k), len(k)), kept);
                }
                for row in 0..rows {
                    let z = call.z.add(row * call.stride);
                    for (k, sum) in sums.iter_mut().enumerate() {
                        *sum = s.add(*sum, math::exp(s, s.sub(s.load_n(at(z, k), len(k)), most[k])));
                    }
                }
                for k in 0..WIDE {
                    s.store_n(at(call.of_cols, k), most[k], len(k));
                    s.store_n(at(call.sums, k), sums[k], len(k));
                }
            }
        }
    }
}

crate::simd_fn! {
    /// Turns logits to their gradients times the factor of the products, and sums up what scale and bias get of each row. The rows,
    /// numbered from `first` on as rows of `a`, are this thread's alone.
    fn gradients<S>(s: S, call: &Call, first: usize, rows: Range<usize>) {
        let (n, bias, factor) = (call.n, s.splat(call.bias), s.splat(call.factor));
        let softmax = call.kind == ContrastiveKind::Softmax;
        let share = if softmax { 0.5 / n as f32 } else { 1.0 / n as f32 };
        let part = s.splat(share);
        for i in rows {
            let row = first + i;
            // SAFETY: the block has this row of `n` logits; the arrays have numbers for it and for all columns.
            unsafe {
                let z = call.z.add(i * call.stride);
                let own = *call.own.add(row);
                let of_row = s.splat(*call.of_rows.add(row));
                if !softmax {
                    *z.add(row) = ASIDE;
                }
                let (mut of_scale, mut of_bias) = (s.zero(), s.zero());
                for at in (0..n).step_by(S::LANES) {
                    let len = S::LANES.min(n - at);
                    let x = s.load_n(z.add(at), len);
                    let g = match softmax {
                        true => {
                            let of_col = s.load_n(call.of_cols.add(at), len);
                            s.add(math::exp(s, s.sub(x, of_row)), math::exp(s, s.sub(x, of_col)))
                        }
                        false => math::sigmoid(s, x),
                    };
                    let g = if len == S::LANES { g } else { s.select(s.first(len), g, s.zero()) };
                    let g = s.mul(g, part);
                    of_scale = s.fma(g, s.sub(x, bias), of_scale);
                    of_bias = s.add(of_bias, g);
                    s.store_n(z.add(at), s.mul(g, factor), len);
                }
                // What the own column has beside, or all that it has.
                let beside = if softmax { -2.0 * share } else { -share / (1.0 + own.exp()) };
                *z.add(row) += call.factor * beside;
                let totals = call.totals.add(2 * row);
                *totals = s.sum(of_scale) + beside * (own - call.bias);
                *totals.add(1) = s.sum(of_bias) + beside;
            }
        }
    }
}
