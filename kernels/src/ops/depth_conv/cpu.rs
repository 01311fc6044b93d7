//! CPU kernels.
//!
//! A task makes one row of places, some channels at a time: taps and input rows are read as vectors along the channels.

use super::DepthConv;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRows};
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for DepthConv {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "channels-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

struct Rows<'a> {
    x: InRows<'a>,
    weight: InRows<'a>,
    bias: Option<InRows<'a>>,
    out: OutRows<'a>,
    grid: (usize, usize),
    places: (usize, usize),
    size: (usize, usize),
    stride: usize,
    padding: usize,
    wide: usize,
    multiplier: usize,
}

fn launch(op: &DepthConv, cx: &CpuCx) -> Result<(), KernelError> {
    let places = op.places();
    let all = Rows {
        x: InRows::new(cx, &op.x)?,
        weight: InRows::new(cx, &op.weight)?,
        bias: op.bias.as_ref().map(|bias| InRows::new(cx, bias)).transpose()?,
        out: OutRows::new(cx, &op.out)?,
        grid: op.grid,
        places,
        size: (op.filter.size.0 as usize, op.filter.size.1 as usize),
        stride: op.filter.stride as usize,
        padding: op.filter.padding as usize,
        wide: op.out.size(1),
        multiplier: op.multiplier(),
    };
    cx.pool.run(op.pictures() * places.0, |task, _| line(cx.isa, &all, task / places.0, task % places.0));
    Ok(())
}

/// Taps along one axis that lie in the picture, for the place that begins at `start - padding`: the first, and the one after the last.
fn inside(start: usize, padding: usize, taps: usize, size: usize) -> (usize, usize) {
    let first = padding.saturating_sub(start).min(taps);
    (first, (size + padding).saturating_sub(start).min(taps).max(first))
}

crate::simd_fn! {
    /// Places `down` of a picture, a row of them, which is this thread's alone.
    fn line<S>(s: S, p: &Rows<'_>, picture: usize, down: usize) {
        // Lanes that share an input channel would want it spread: they go one by one.
        let step = if p.multiplier == 1 { S::LANES } else { 1 };
        let y = down * p.stride;
        let (top, bottom) = inside(y, p.padding, p.size.0, p.grid.0);
        // SAFETY: taps are cut to those whose rows and columns lie in the picture; columns of a row are below `wide`.
        unsafe {
            let bias = p.bias.as_ref().map(|bias| bias.row(0));
            for across in 0..p.places.1 {
                let from = across * p.stride;
                let (left, right) = inside(from, p.padding, p.size.1, p.grid.1);
                let out = p.out.row((picture * p.places.0 + down) * p.places.1 + across).part(0, p.wide);
                for at in (0..p.wide).step_by(step) {
                    let n = step.min(p.wide - at);
                    let mut sum = bias.as_ref().map_or(s.zero(), |bias| bias.load(s, at, n));
                    for ty in top..bottom {
                        let first = (picture * p.grid.0 + y + ty - p.padding) * p.grid.1;
                        for tx in left..right {
                            let x = p.x.row(first + from + tx - p.padding).load(s, at / p.multiplier, n);
                            let weight = p.weight.row(ty * p.size.1 + tx).load(s, at, n);
                            sum = s.fma(x, weight, sum);
                        }
                    }
                    out.store(s, at, sum, n);
                }
            }
        }
    }
}
