//! CPU kernels.
//!
//! A task takes some channels of one sequence. Its last inputs go round in a ring that stays in the first-level cache, so that
//! each input is read, and multiplied with its gate, once.

use super::{ConvForm, ShortConv};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRows};
use crate::cpu::simd::math;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::sequences::Sequence;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for ShortConv {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "ring-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

struct Rows<'a> {
    x: InRows<'a>,
    weight: InRows<'a>,
    bias: Option<InRows<'a>>,
    /// The states, `[slots * (taps - 1), channels]`.
    old: InRows<'a>,
    state: OutRows<'a>,
    out: OutRows<'a>,
    form: ConvForm,
    taps: usize,
    /// Columns of gates after and inputs.
    columns: (usize, usize),
}

fn launch(op: &ShortConv, cx: &CpuCx) -> Result<(), KernelError> {
    let (taps, channels, slots) = (op.taps(), op.weight.size(1), op.state.size(0));
    let flat = op.state.reshape(&[slots * (taps - 1), channels])?;
    let all = Rows {
        x: InRows::new(cx, &op.x)?,
        weight: InRows::new(cx, &op.weight)?,
        bias: op.bias.as_ref().map(|bias| InRows::new(cx, bias)).transpose()?,
        old: InRows::new(cx, &flat)?,
        state: OutRows::new(cx, &flat)?,
        out: OutRows::new(cx, &op.out)?,
        form: op.form,
        taps,
        columns: op.columns(),
    };
    let seqs = op.seqs.on_host(cx, ShortConv::NAME, op.x.size(0), slots)?;
    // Long stretches of few channels, or short ones of many.
    let width = if op.seqs.most > 16 { 64 } else { 512 };
    let chunks = channels.div_ceil(width);
    cx.pool.run(seqs.len() * chunks, |task, worker| {
        let (seq, start) = (seqs[task / chunks], task % chunks * width);
        let width = width.min(channels - start);
        convolve(cx.isa, &all, seq, start, width, worker.scratch.slice::<f32>(2 * taps * width));
    });
    Ok(())
}

crate::simd_fn! {
    /// Channels `start..start + width` of a sequence, which are this thread's alone. `buffer` is for `2 * taps * width` values.
    fn convolve<S>(s: S, p: &Rows<'_>, seq: Sequence, start: usize, width: usize, buffer: &mut [f32]) {
        let taps = p.taps;
        let (ring, weights) = buffer.split_at_mut(taps * width);
        let (ring, weights) = (ring.as_mut_ptr(), weights.as_mut_ptr());
        // SAFETY: `launch` checked rows and slots; columns are within `width`, buffers hold `taps * width` values.
        unsafe {
            for tap in 0..taps {
                let weight = p.weight.row(tap).skip(start);
                for at in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(width - at);
                    s.store_n(weights.add(tap * width + at), weight.load(s, at, n), n);
                    if tap + 1 < taps {
                        let old = seq.old().map(|slot| p.old.row(slot * (taps - 1) + tap).skip(start));
                        let v = old.map_or(s.zero(), |old| old.load(s, at, n));
                        s.store_n(ring.add(tap * width + at), v, n);
                    }
                }
            }
            let bias = p.bias.as_ref().map(|bias| bias.row(0).skip(start));
            for row in 0..seq.rows {
                let x = p.x.row(seq.first + row).skip(start);
                let (after, input) = (x.skip(p.columns.0), x.skip(p.columns.1));
                let out = p.out.row(seq.first + row).part(start, width);
                for at in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(width - at);
                    let mut v = input.load(s, at, n);
                    if p.form == ConvForm::Gated {
                        v = s.mul(v, x.load(s, at, n));
                    }
                    s.store_n(ring.add((row + taps - 1) % taps * width + at), v, n);
                    let mut sum = bias.as_ref().map_or(s.zero(), |bias| bias.load(s, at, n));
                    for tap in 0..taps {
                        let u = s.load_n(ring.add((row + tap) % taps * width + at), n);
                        sum = s.fma(u, s.load_n(weights.add(tap * width + at), n), sum);
                    }
                    sum = match p.form {
                        ConvForm::Plain => sum,
                        ConvForm::Silu => math::silu(s, sum),
                        ConvForm::Gated => s.mul(sum, after.load(s, at, n)),
                    };
                    out.store(s, at, sum, n);
                }
            }
            let Some(slot) = seq.slot else { return };
            for place in 0..taps - 1 {
                let state = p.state.row(slot * (taps - 1) + place).part(start, width);
                for at in (0..width).step_by(S::LANES) {
                    let n = S::LANES.min(width - at);
                    let u = s.load_n(ring.add((seq.rows + place) % taps * width + at), n);
                    state.store(s, at, u, n);
                }
            }
        }
    }
}
