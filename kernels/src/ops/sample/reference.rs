//! Sampling in f64.
//!
//! A token is a discrete result: where a rounding error of f32 could tip a comparison, every answer is allowed.

use super::{NO_TOKEN, Sample, params};
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::KernelError;

/// Relative distance from a threshold within which f32 arithmetic over a vocabulary may fall on the other side.
const AMBIGUOUS: f64 = 1e-4;

pub(super) fn reference(op: &Sample, io: &mut Oracle) -> Result<(), KernelError> {
    let (logits, settings) = (io.read(&op.logits)?, io.read(&op.params)?);
    let history = op.history.as_ref().map(|view| io.ints(view)).transpose()?;
    let mask = op.mask.as_ref().map(|view| io.ints(view)).transpose()?;
    let (rows, vocab) = (op.logits.size(0), op.logits.size(1));
    let words = vocab.div_ceil(32);
    let (mut values, mut errors) = (Vec::new(), Vec::new());
    for row in 0..rows {
        // Adding zero makes both zeros one value.
        let mut row_logits: Vec<f64> = logits[row * vocab..][..vocab].iter().map(|&v| v + 0.0).collect();
        let set = &settings[row * params::COUNT..][..params::COUNT];
        if let Some(history) = &history {
            let width = history.len() / rows.max(1);
            let mut seen: Vec<i64> =
                history[row * width..][..width].iter().copied().filter(|&id| id >= 0).collect();
            seen.sort_unstable();
            seen.dedup();
            for index in seen {
                let logit = row_logits.get_mut(index as usize).ok_or(KernelError::Index {
                    op: Sample::NAME,
                    what: "history token",
                    index,
                    limit: vocab,
                })?;
                let penalty = set[params::REPETITION_PENALTY];
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        if let (Some(mask), number @ 1..) = (&mask, set[params::MASK] as usize) {
            let limit = mask.len() / words.max(1);
            if number > limit {
                let (what, index) = ("mask", number as i64 - 1);
                return Err(KernelError::Index { op: Sample::NAME, what, index, limit });
            }
            let allowed = &mask[(number - 1) * words..][..words];
            for (token, logit) in row_logits.iter_mut().enumerate() {
                if allowed[token / 32] >> (token % 32) & 1 == 0 && !logit.is_nan() {
                    *logit = f64::NEG_INFINITY;
                }
            }
        }
        let most = row_logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if row_logits.iter().any(|v| v.is_nan()) || most.is_infinite() {
            values.push(NO_TOKEN.into());
            errors.push(0.0);
            continue;
        }
        let (token, sure) = pick(&row_logits, set, history.is_some());
        values.push(token as f64);
        // Otherwise any token, whose ids are no further away than the first or the last one.
        errors.push(if sure { 0.0 } else { token.max(vocab - 1 - token) as f64 });
    }
    io.expect(&op.out, values, errors);
    Ok(())
}

/// The token, and whether rounding cannot change it.
fn pick(logits: &[f64], set: &[f64], penalized: bool) -> (usize, bool) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let near = |a: f64, b: f64| (a - b).abs() <= AMBIGUOUS * (a.abs() + b.abs());
    if set[params::TEMPERATURE] <= 0.0 {
        // Logits are compared exactly, but a penalty is rounded.
        let tie = penalized
            && set[params::REPETITION_PENALTY] != 1.0
            && order.get(1).is_some_and(|&next| near(logits[order[0]], logits[next]));
        return (order[0], !tie);
    }
    let scaled = |id: usize| logits[id] / set[params::TEMPERATURE];
    let mut sure = true;
    if set[params::TOP_K] >= 1.0 {
        // Ties with the last token kept stay, as in transformers.
        let last = logits[order[(set[params::TOP_K] as usize).min(order.len()) - 1]];
        order.retain(|&id| logits[id] >= last);
    }
    let most = scaled(order[0]);
    let mut weights: Vec<f64> = order.iter().map(|&id| (scaled(id) - most).exp()).collect();
    let keep = |weights: &mut Vec<f64>, count: usize| {
        weights.truncate(count.max(1));
    };
    if set[params::TOP_P] < 1.0 {
        let total: f64 = weights.iter().sum();
        let mut before = 0.0;
        let mut count = weights.len();
        for (rank, weight) in weights.iter().enumerate() {
            sure &= rank == 0 || !near(before / total, set[params::TOP_P]);
            if before / total >= set[params::TOP_P] {
                count = rank;
                break;
            }
            before += weight;
        }
        keep(&mut weights, count);
    }
    if set[params::MIN_P] > 0.0 {
        let count = weights.iter().take_while(|&&w| w >= set[params::MIN_P]).count();
        sure &= !weights.iter().any(|&w| near(w, set[params::MIN_P]));
        keep(&mut weights, count);
    }
    let cut = set[params::UNIFORM] * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    for (rank, weight) in weights.iter().enumerate() {
        sum += weight;
        sure &= !near(sum, cut);
        if sum > cut {
            return (order[rank], sure);
        }
    }
    (order[weights.len() - 1], false)
}
