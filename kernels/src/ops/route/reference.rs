//! Routing in f64.

use super::{Route, Scores};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &Route, io: &mut Oracle) -> Result<(), KernelError> {
    let (experts, top) = (op.logits.size(1), op.ids.size(1));
    let logits = io.read(&op.logits)?;
    let bias = op.bias.as_ref().map(|view| io.read(view)).transpose()?;
    let factors = op.factors.as_ref().map(|view| io.read(view)).transpose()?;
    let (mut ids, mut weights, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for row in logits.chunks(experts.max(1)) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = row.iter().map(|logit| (logit - most).exp()).sum();
        let score = |logit: f64| match op.scores {
            Scores::Softmax => (logit - most).exp() / total,
            Scores::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        };
        // Scores ascend with logits, which are compared exactly where nothing is added.
        let key = |expert: usize| match &bias {
            None => row[expert],
            Some(bias) => score(row[expert]) + bias[expert],
        };
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
        order.truncate(top);
        let sum: f64 = order.iter().map(|&expert| score(row[expert])).sum();
        for &expert in &order {
            let own = factors.as_ref().map_or(1.0, |factors| factors[expert]);
            let share = if op.normalize { 1.0 / sum } else { 1.0 };
            let weight = score(row[expert]) * share * own * f64::from(op.scale);
            // An exponential, to which WGSL grants an error of its argument times 2 ulp; a sum; two quotients; two factors.
            let argument = 4.0 * DType::F32.roundoff() * (row[expert].abs() + most.abs());
            let sums = tolerance::dot(experts, 1.0) + tolerance::dot(top, 1.0);
            ids.push(expert as f64);
            errors
                .push(tolerance::pointwise(argument * weight.abs(), 2.0, weight) + 2.0 * sums * weight.abs());
            weights.push(weight);
        }
    }
    let exact = vec![0.0; ids.len()];
    io.expect(&op.ids, ids, exact);
    io.expect(&op.weights, weights, errors);
    Ok(())
}
