//! The recurrence in f64, with a bound of the error of each column of the state.
//!
//! An error of a column before a token is multiplied with `decay * (1 - beta k k^T)`, whose norm is at most 1 as `beta` is
//! between 0 and 1 and `k` no longer than 1. So the length of a column's error is at most that before plus the length of what the
//! token adds, and no single element's is larger.

use super::{EPS, GatedDelta, Heads};
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

/// A value with a bound of its error.
type Bounded = (f64, f64);

/// Query or key of unit length; a bound of the relative error of each element is `unit_error`.
fn unit(x: &[f64], scale: f64) -> Vec<f64> {
    let length = (x.iter().map(|v| v * v).sum::<f64>() + f64::from(EPS)).sqrt();
    x.iter().map(|v| v / length * scale).collect()
}

fn length(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|v| v * v).sum::<f64>().sqrt()
}

/// `sigmoid(b)`.
fn beta(b: f64) -> Bounded {
    let value = 1.0 / (1.0 + (-b).exp());
    (value, tolerance::pointwise(DType::F32.roundoff() * b.abs(), value * (1.0 - value), value))
}

/// `exp(-rate * softplus(a + bias))`.
fn decay(a: f64, rate: f64, bias: f64) -> Bounded {
    let u = DType::F32.roundoff();
    let x = a + bias;
    let soft = x.max(0.0) + (-x.abs()).exp().ln_1p();
    let inner = rate * tolerance::pointwise(2.0 * u * (x.abs() + a.abs()), 1.0, soft) + u * rate * soft;
    let value = (-rate * soft).exp();
    (value, tolerance::pointwise(inner + u * rate * soft, value, value))
}

pub(super) fn reference(op: &GatedDelta, io: &mut Oracle) -> Result<(), KernelError> {
    let heads = op.heads()?;
    let Heads { v: heads_v, d_k, d_v, .. } = heads;
    let (qkv, gates, rates) = (io.read(&op.qkv)?, io.read(&op.gates)?, io.read(&op.decay)?);
    let state = io.read(&op.state)?;
    let width = op.qkv.size(1);
    let u = DType::F32.roundoff();
    let unit_error = tolerance::dot(d_k, 1.0) + 8.0 * u;
    let (mut values, mut errors) = (vec![0.0; op.out.len()], vec![0.0; op.out.len()]);
    let mut kept = Vec::new();
    for seq in op.seqs.exact(io, GatedDelta::NAME, op.qkv.size(0), op.state.size(0))? {
        for head in 0..heads_v {
            let place = |slot: usize| (slot * heads_v + head) * d_k * d_v;
            let old = seq.old().map(|slot| state[place(slot)..][..d_k * d_v].to_vec());
            let mut s = old.unwrap_or_else(|| vec![0.0; d_k * d_v]);
            // Lengths of the errors of columns.
            let mut off = vec![0.0; d_v];
            for row in seq.first..seq.first + seq.rows {
                let (at_q, at_k, at_v) = heads.columns(head);
                let x = &qkv[row * width..][..width];
                let q = unit(&x[at_q..][..d_k], 1.0 / (d_k as f64).sqrt());
                let k = unit(&x[at_k..][..d_k], 1.0);
                let (q_length, k_length) = (length(q.iter().copied()), length(k.iter().copied()));
                let gate = &gates[row * 2 * heads_v..][..2 * heads_v];
                let (beta, beta_error) = beta(gate[head]);
                let (decay, decay_error) = decay(gate[heads_v + head], rates[head], rates[heads_v + head]);
                for (col, off) in off.iter_mut().enumerate() {
                    let column = |i: usize| s[i * d_v + col];
                    let terms = || (0..d_k).map(|i| k[i] * column(i));
                    let known: f64 = terms().sum();
                    let magnitude: f64 = terms().map(f64::abs).sum();
                    let size = length((0..d_k).map(column));
                    let v = x[at_v + col];
                    let wrong = v - decay * known;
                    let change = beta * wrong;
                    let known_error = decay * (unit_error * magnitude + tolerance::dot(d_k, magnitude))
                        + (decay_error + u * decay) * known.abs();
                    let change_error = beta * (known_error + 2.0 * u * (v.abs() + decay * known.abs()))
                        + wrong.abs() * beta_error
                        + 2.0 * u * change.abs();
                    let fresh = (decay_error + 2.0 * u * decay) * size
                        + k_length * (change_error + (unit_error + 3.0 * u) * change.abs());
                    *off = *off * (decay + decay_error) * (1.0 + 2.0 * unit_error) + fresh;
                    let (mut sum, mut magnitude) = (0.0, 0.0);
                    for i in 0..d_k {
                        let before = decay * s[i * d_v + col];
                        let after = before + k[i] * change;
                        s[i * d_v + col] = after;
                        sum += q[i] * after;
                        magnitude += q[i].abs() * (before.abs() + (k[i] * change).abs());
                    }
                    let to = row * heads_v * d_v + head * d_v + col;
                    values[to] = sum;
                    errors[to] = q_length * *off + unit_error * magnitude + tolerance::dot(d_k, magnitude);
                }
            }
            if let Some(slot) = seq.slot {
                let first = place(slot);
                kept.extend(s.into_iter().enumerate().map(|(i, value)| (first + i, value, off[i % d_v])));
            }
        }
    }
    kept.sort_unstable_by_key(|(index, ..)| *index);
    let indices = kept.iter().map(|(index, ..)| *index).collect();
    let (states, state_errors) = kept.into_iter().map(|(_, value, error)| (value, error)).unzip();
    io.expect_some(&op.state, Some(indices), states, state_errors);
    io.expect(&op.out, values, errors);
    Ok(())
}
