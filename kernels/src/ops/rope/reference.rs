//! Rotary embedding in f64; angles are f32 products, as the contract says.

use super::{Rope, RopeStyle};
use crate::buffer::View;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

struct Turn {
    sin: f64,
    cos: f64,
    /// Bound of the error of an f32 sine or cosine of this angle.
    error: f64,
}

pub(super) fn reference(op: &Rope, io: &mut Oracle) -> Result<(), KernelError> {
    let (tokens, head_dim) = (op.q.size(0), op.q.size(2));
    let positions = io.ints(&op.positions)?;
    let inv_freq = io.read(&op.inv_freq)?;
    let axes = op.positions.size(0);
    let axis = op.pair_axis.as_ref().map_or(Ok(vec![0; inv_freq.len()]), |view| io.ints(view))?;
    if let Some(&index) = axis.iter().find(|&&a| a < 0 || a as usize >= axes) {
        return Err(KernelError::Index { op: Rope::NAME, what: "pair_axis", index, limit: axes });
    }
    let turns = |token: usize| -> Vec<Turn> {
        inv_freq
            .iter()
            .zip(&axis)
            .map(|(&freq, &axis)| {
                let angle = f64::from(positions[axis as usize * tokens + token] as f32 * freq as f32);
                Turn { sin: angle.sin(), cos: angle.cos(), error: 4.0 * DType::F32.roundoff() }
            })
            .collect()
    };

    let (q, q_errors) = turned(op, io, &op.q, op.norm.as_ref().map(|n| &n.q), &turns)?;
    let (k, k_errors) = turned(op, io, &op.k, op.norm.as_ref().map(|n| &n.k), &turns)?;
    io.expect(&op.q, q, q_errors);
    let Some(kv) = &op.kv else {
        io.expect(&op.k, k, k_errors);
        return Ok(());
    };
    let (v, slots) = (io.read(&kv.v)?, io.ints(&kv.slots)?);
    let row = op.k.size(1) * head_dim;
    let limit = kv.k_pages.size(0) * kv.k_pages.size(1);
    let (mut indices, mut keys, mut errors, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (token, &slot) in slots.iter().enumerate() {
        if slot >= limit as i64 {
            return Err(KernelError::Index { op: Rope::NAME, what: "slot", index: slot, limit });
        }
        if slot >= 0 {
            order.push((slot as usize, token));
        }
    }
    order.sort_unstable();
    for (slot, token) in order {
        indices.extend(slot * row..(slot + 1) * row);
        keys.extend_from_slice(&k[token * row..][..row]);
        errors.extend_from_slice(&k_errors[token * row..][..row]);
        values.extend_from_slice(&v[token * row..][..row]);
    }
    let exact = vec![0.0; values.len()];
    io.expect_some(&kv.k_pages, Some(indices.clone()), keys, errors);
    io.expect_some(&kv.v_pages, Some(indices), values, exact);
    Ok(())
}

fn turned(
    op: &Rope,
    io: &Oracle,
    x: &View,
    weight: Option<&View>,
    turns: &dyn Fn(usize) -> Vec<Turn>,
) -> Result<(Vec<f64>, Vec<f64>), KernelError> {
    let (heads, head_dim) = (x.size(1), x.size(2));
    let mut all = io.read(x)?;
    let mut errors = vec![0.0; all.len()];
    let weight = weight.map(|view| io.read(view)).transpose()?;
    let u = DType::F32.roundoff();
    for (row, (head, errors)) in
        all.chunks_exact_mut(head_dim.max(1)).zip(errors.chunks_exact_mut(head_dim.max(1))).enumerate()
    {
        if let (Some(weight), Some(norm)) = (&weight, &op.norm) {
            let mean = head.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
            let scale = 1.0 / (mean + f64::from(norm.eps)).sqrt();
            for ((v, error), w) in head.iter_mut().zip(errors.iter_mut()).zip(weight) {
                *v *= scale * (w + f64::from(norm.weight_offset));
                *error = v.abs() * (tolerance::dot(head_dim, 1.0) + 6.0 * u);
            }
        }
        for (pair, turn) in turns(row / heads).iter().enumerate() {
            let (i, j) = match op.style {
                RopeStyle::Half => (pair, pair + op.inv_freq.len()),
                RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let scale = f64::from(op.attention_scaling);
            let (a, b, inner) = (head[i], head[j], errors[i] + errors[j]);
            head[i] = (a * turn.cos - b * turn.sin) * scale;
            head[j] = (b * turn.cos + a * turn.sin) * scale;
            let error = (inner + (a.abs() + b.abs()) * (turn.error + 4.0 * u)) * scale.abs();
            errors[i] = error;
            errors[j] = error;
        }
    }
    Ok((all, errors))
}
