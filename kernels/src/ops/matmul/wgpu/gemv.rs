//! Products for few rows of x: weights streamed once.

use super::super::{Matmul, MatmulSpec};
use super::product::{Product, products};
use crate::select::Reject;
use crate::spec::{Caps, KernelError};
use crate::wgpu::{Kernel, WgpuCx};

/// Rows of `x` at most.
const MAX_M: u32 = 8;

pub(super) fn reject(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    let why = spec.reject_fused().or_else(|| spec.w.reject_k_major());
    why.or_else(|| (spec.m > MAX_M).then(|| format!("for at most {MAX_M} rows of x").into()))
}

/// Reading the weights, or multiplying.
pub(super) fn est(spec: &MatmulSpec, _: &Caps) -> f32 {
    let bytes = spec.w.bytes(spec.n as usize, spec.k as usize) as f32;
    let macs = spec.m as f32 * spec.n as f32 * spec.k as f32;
    3.0 + (bytes / 750_000.0).max(macs / 4e6)
}

/// Whether subgroups can add up: `lanes.wgsl` has room for the sums of subgroups of four lanes or more.
pub(super) fn has_subgroups(caps: &Caps) -> bool {
    caps.wgpu.subgroup.0 >= 4
}

pub(super) fn reject_subgroup(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if !has_subgroups(caps) {
        return Some("the device has no subgroup operations".into());
    }
    reject(spec, caps)
}

pub(super) fn est_subgroup(spec: &MatmulSpec, caps: &Caps) -> f32 {
    est(spec, caps) - 0.5
}

pub(super) fn plain(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    products(op, cx, 1, |product, cx| launch(product, cx, false))
}

pub(super) fn subgroup(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    products(op, cx, 1, |product, cx| launch(product, cx, true))
}

/// How the work is cut.
pub(super) struct Shape {
    /// Rows of x in registers.
    m: usize,
    /// Rows of w of a workgroup.
    rows: usize,
    /// Invocations of a workgroup, which lie along k.
    lanes: usize,
}

impl Shape {
    /// For invocations that take `span` weights of a row at once, two times or more where k is long. Few rows of w are
    /// spread over more workgroups.
    pub fn of(product: &Product<'_>, span: usize) -> Self {
        let turns = product.op.w.k().div_ceil(2 * span);
        Self {
            m: product.op.x.size(0).next_power_of_two(),
            rows: if product.gated() || product.part.rows >= 2048 { 4 } else { 2 },
            lanes: turns.next_power_of_two().clamp(32, 128),
        }
    }

    /// Gives the cut to the source.
    pub fn define(&self, kernel: &mut Kernel<'_, '_>, subgroup: bool) {
        kernel
            .define("M", self.m)
            .define("R", self.rows)
            .define("WG", self.lanes)
            .define("SUBGROUP", u8::from(subgroup));
    }

    /// Workgroups for all columns of a product.
    pub fn groups(&self, product: &Product<'_>) -> usize {
        product.columns().div_ceil(if product.gated() { self.rows / 2 } else { self.rows })
    }
}

fn launch(product: &Product<'_>, cx: &mut WgpuCx<'_>, subgroup: bool) -> Result<(), KernelError> {
    let steps = product.op.w.format().grouped().map_or(1, |grouped| 16 / grouped.code.bits());
    let shape = Shape::of(product, 8 * steps);
    let (mut kernel, mut params) = product.kernel(cx, "ops/matmul/gemv.wgsl", false)?;
    product.x(&mut kernel, &mut params)?;
    shape.define(&mut kernel, subgroup);
    kernel.define("STEPS", steps).params(&params);
    kernel.dispatch_linear(shape.groups(product))
}
