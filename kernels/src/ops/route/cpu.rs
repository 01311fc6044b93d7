//! CPU kernels.

use super::{Route, Scores};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, grain};
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for Route {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Where the results of a row go.
#[derive(Clone, Copy)]
struct Outputs {
    ids: *mut i32,
    weights: *mut f32,
}

// SAFETY: each row is one thread's alone.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

impl Outputs {
    /// # Safety
    /// Both have more than `at` elements, and no other thread accesses this one.
    unsafe fn set(&self, at: usize, id: usize, weight: f32) {
        // SAFETY: as the caller vouches.
        unsafe {
            *self.ids.add(at) = id as i32;
            *self.weights.add(at) = weight;
        }
    }
}

fn launch(op: &Route, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, experts, top) = (op.logits.size(0), op.logits.size(1), op.ids.size(1));
    let logits = InRows::new(cx, &op.logits)?;
    let table = |view: &Option<crate::View>| match view {
        // SAFETY: a vector is row 0; nobody writes it meanwhile.
        Some(view) => InRows::new(cx, view).map(|rows| Some(values(unsafe { rows.row(0) }))),
        None => Ok(None),
    };
    let (bias, factors) = (table(&op.bias)?, table(&op.factors)?);
    let out = Outputs { ids: cx.output(&op.ids)?, weights: cx.output(&op.weights)? };
    cx.pool.run_ranges(rows, grain(rows, experts * 8, cx.pool.threads()), |range, _| {
        for row in range {
            // SAFETY: the row exists, says the spec.
            let scores = values(unsafe { logits.row(row) });
            let chosen = choose(op, scores, bias.as_deref(), factors.as_deref());
            for (at, (id, weight)) in chosen.into_iter().enumerate() {
                // SAFETY: a row has `top` results and is one thread's alone.
                unsafe { out.set(row * top + at, id, weight) };
            }
        }
    });
    Ok(())
}

fn values(row: InRow<'_>) -> Vec<f32> {
    (0..row.len()).map(|at| row.get(at)).collect()
}

/// The experts of a row with their weights.
fn choose(op: &Route, logits: Vec<f32>, bias: Option<&[f32]>, factors: Option<&[f32]>) -> Vec<(usize, f32)> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scores: Vec<f32> = match op.scores {
        Scores::Softmax => {
            let powers: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
            let total: f32 = powers.iter().sum();
            powers.into_iter().map(|power| power / total).collect()
        }
        Scores::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
    };
    // Scores ascend with logits; logits tell apart what rounds to one score.
    let keys = match bias {
        None => logits,
        Some(bias) => scores.iter().zip(bias).map(|(score, bias)| score + bias).collect(),
    };
    let mut order: Vec<usize> = (0..keys.len()).collect();
    let top = op.ids.size(1);
    let descending = |a: &usize, b: &usize| keys[*b].total_cmp(&keys[*a]).then(a.cmp(b));
    if top < order.len() {
        order.select_nth_unstable_by(top, descending);
        order.truncate(top);
    }
    order.sort_unstable_by(descending);
    let sum: f32 = order.iter().map(|&id| scores[id]).sum();
    let share = if op.normalize { 1.0 / sum } else { 1.0 };
    let own = |id: usize| factors.map_or(1.0, |factors| factors[id]);
    order.into_iter().map(|id| (id, scores[id] * share * op.scale * own(id))).collect()
}
