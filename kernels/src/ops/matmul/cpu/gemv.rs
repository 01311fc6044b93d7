//! Products for few rows: weights streamed once.

use half::{bf16, f16};
use smallvec::SmallVec;

use super::args::{Rows, with_args};
use crate::cpu::CpuCx;
use crate::cpu::gemm::GemmArgs;
use crate::cpu::gemv::{
    DenseDots, Dots, GroupedDots, Int8Dots, Plain, fits, fits_k_major, gemv, gemv_k_major,
};
use crate::ops::Matmul;
use crate::ops::matmul::{Math, MatmulSpec};
use crate::quant::int::Int;
use crate::quant::kmajor::cpu::KMajorRows;
use crate::quant::with_decoder;
use crate::select::Reject;
use crate::spec::{Caps, DType, Format, Grouped, KernelError};

/// Rows of `x` up to which these kernels are offered.
const MAX_M: u32 = 32;

fn reject_m(spec: &MatmulSpec) -> Option<Reject> {
    spec.reject_fused().or_else(|| (spec.m > MAX_M).then(|| format!("for at most {MAX_M} rows of x").into()))
}

pub(super) fn reject_dense(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    if spec.w.dense().is_none() {
        return Some("for float weights".into());
    }
    reject_m(spec)
}

pub(super) fn reject_codes(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    let Format::Grouped(Grouped { code, group, .. }) = spec.w else {
        return Some("for weights that are codes in groups".into());
    };
    // A group as long as the row is the whole row.
    let group = if group >= spec.k { 0 } else { group };
    if !fits(code.bits(), group as usize) {
        return Some("for groups of whole words, a power of two of them or a multiple of 16".into());
    }
    reject_m(spec)
}

pub(super) fn reject_bytes(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if spec.math != Math::Int8 {
        return Some("rounds x to 8 bits, which math=int8 allows".into());
    }
    if !spec.w.grouped().is_some_and(|grouped| grouped.code.is_int()) {
        return Some("for integer weights".into());
    }
    reject_codes(spec, caps)
}

/// Reading the weights, or multiplying at `rate` products a microsecond and thread: whichever takes longer. Rates are on
/// the scale of those of the packed kernels; what matters is where the two cross, at 9 to 16 rows.
fn est(spec: &MatmulSpec, caps: &Caps, rate: f32) -> f32 {
    let bytes = spec.w.bytes(spec.n as usize, spec.k as usize) as f32;
    let macs = spec.m as f32 * spec.n as f32 * spec.k as f32;
    (bytes / 20_000.0).max(macs / rate) / caps.units as f32
}

pub(super) fn est_f32(spec: &MatmulSpec, caps: &Caps) -> f32 {
    est(spec, caps, 12_000.0)
}

pub(super) fn est_bytes(spec: &MatmulSpec, caps: &Caps) -> f32 {
    est(spec, caps, 16_000.0)
}

fn run<D: Dots>(op: &Matmul, cx: &CpuCx, of: impl Fn(&Rows) -> Option<D>) -> Result<(), KernelError> {
    with_args(op, cx, |args: &GemmArgs, rows| {
        let all: SmallVec<[D; 3]> = rows.iter().filter_map(of).collect();
        if all.len() == rows.len() {
            // SAFETY: `with_args` gives operands that satisfy the contract.
            unsafe { gemv(cx.isa, &cx.pool, args, &all) }
        }
        Ok(())
    })
}

pub(super) fn dense(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    fn of<T>(rows: &Rows, once: bool) -> Option<DenseDots<T>> {
        match rows {
            Rows::Dense(_, matrix) => Some(DenseDots { ptr: matrix.ptr.cast(), stride: matrix.stride, once }),
            Rows::Grouped(_) | Rows::KMajor(_) => None,
        }
    }
    let once = cx.isa.reads_once();
    match op.w.format().dense() {
        Some(DType::BF16) => run(op, cx, |rows| of::<bf16>(rows, once)),
        Some(DType::F16) => run(op, cx, |rows| of::<f16>(rows, once)),
        _ => run(op, cx, |rows| of::<f32>(rows, once)),
    }
}

fn grouped<F>(rows: &Rows, decoder: F) -> Option<GroupedDots<F>> {
    match rows {
        Rows::Grouped(rows) => Some(GroupedDots(*rows, decoder)),
        Rows::Dense(..) | Rows::KMajor(_) => None,
    }
}

pub(super) fn codes(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    let Format::Grouped(Grouped { code, .. }) = op.w.format() else { return Ok(()) };
    with_decoder!(code, decoder => run(op, cx, |rows| grouped(rows, decoder)))
}

pub(super) fn reject_k_major(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    let Format::KMajor(grouped, _) = spec.w else {
        return Some("for integers whose planes lie along n".into());
    };
    // Parts are whole words of columns where the whole is: the loader sees to it.
    if !fits_k_major(spec.n as usize, spec.k as usize, grouped.group as usize) {
        return Some("for n, k and groups in multiples of 32".into());
    }
    reject_m(spec)
}

pub(super) fn k_major(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    with_args(op, cx, |args: &GemmArgs, rows| {
        let of = |rows: &Rows| if let Rows::KMajor(rows) = rows { Some(*rows) } else { None };
        let all: SmallVec<[KMajorRows; 3]> = rows.iter().filter_map(of).collect();
        if all.len() == rows.len() && args.parts.iter().all(|part| part.rows.is_multiple_of(32)) {
            // SAFETY: `with_args` gives operands that satisfy the contract.
            unsafe { gemv_k_major(cx.isa, &cx.pool, args, &all) }
        } else {
            // SAFETY: as above.
            unsafe { crate::cpu::gemm::gemm(cx.isa, &cx.pool, args) }
        }
        Ok(())
    })
}

pub(super) fn bytes(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    match op.w.format() {
        Format::Grouped(Grouped { code, .. }) if code.bits() == 4 => bytes_of::<4>(op, cx),
        _ => bytes_of::<8>(op, cx),
    }
}

fn bytes_of<const BITS: usize>(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    let int = |rows: &Rows| grouped(rows, Int::<BITS>);
    #[cfg(target_arch = "x86_64")]
    if let Some(vnni) = crate::cpu::gemv::Vnni::of(cx.isa) {
        return run(op, cx, |rows| int(rows).map(|rows| Int8Dots(rows, vnni)));
    }
    run(op, cx, |rows| int(rows).map(|rows| Int8Dots(rows, Plain)))
}
