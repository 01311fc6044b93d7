//! Rotary embedding in f64; angles are f32 products, as the contract says.

use super::{Rope, RopeStyle};
use crate::buffer::View;
use crate::op::Op;
use crate::ops::kept;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

struct Turn {
    sin: f64,
    cos: f64,
    /// Bound of the error of an f32 sine or cosine of this angle.
    error: f64,
}

/// How heads are turned: positions, frequencies and what follows them.
pub(in crate::ops) struct Turning<'a> {
    pub positions: &'a View,
    pub inv_freq: &'a View,
    pub pair_axis: Option<&'a View>,
    pub style: RopeStyle,
    pub scaling: f32,
}

/// The turns of each pair of each token.
pub(in crate::ops) struct Turns {
    of_tokens: Vec<Vec<Turn>>,
    style: RopeStyle,
    scaling: f64,
}

impl Turns {
    pub(in crate::ops) fn new(io: &Oracle, of: &Turning<'_>) -> Result<Self, KernelError> {
        let (axes, tokens) = (of.positions.size(0), of.positions.size(1));
        let positions = io.ints(of.positions)?;
        let inv_freq = io.read(of.inv_freq)?;
        let axis = of.pair_axis.map_or(Ok(vec![0; inv_freq.len()]), |view| io.ints(view))?;
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
        Ok(Self {
            of_tokens: (0..tokens).map(turns).collect(),
            style: of.style,
            scaling: f64::from(of.scaling),
        })
    }

    /// Turns a head of a token, whose elements are known to within `errors`.
    pub(in crate::ops) fn turn(&self, token: usize, head: &mut [f64], errors: &mut [f64]) {
        let (pairs, u) = (self.of_tokens[token].len(), DType::F32.roundoff());
        for (pair, turn) in self.of_tokens[token].iter().enumerate() {
            let (i, j) = match self.style {
                RopeStyle::Half => (pair, pair + pairs),
                RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let scale = self.scaling;
            let (a, b, inner) = (head[i], head[j], errors[i] + errors[j]);
            head[i] = (a * turn.cos - b * turn.sin) * scale;
            head[j] = (b * turn.cos + a * turn.sin) * scale;
            let error = (inner + (a.abs() + b.abs()) * (turn.error + 4.0 * u)) * scale.abs();
            errors[i] = error;
            errors[j] = error;
        }
    }
}

pub(super) fn reference(op: &Rope, io: &mut Oracle) -> Result<(), KernelError> {
    let turns = Turns::new(
        io,
        &Turning {
            positions: &op.positions,
            inv_freq: &op.inv_freq,
            pair_axis: op.pair_axis.as_ref(),
            style: op.style,
            scaling: op.attention_scaling,
        },
    )?;
    let (q, q_errors) = turned(op, io, &op.q, op.norm.as_ref().map(|n| &n.q), &turns)?;
    let (k, k_errors) = turned(op, io, &op.k, op.norm.as_ref().map(|n| &n.k), &turns)?;
    io.expect(&op.q, q, q_errors);
    let Some(kv) = &op.kv else {
        io.expect(&op.k, k, k_errors);
        return Ok(());
    };
    let v = io.read(&kv.v)?;
    let exact = vec![0.0; v.len()];
    expect_kept(io, &kv.slots, &kv.k_pages, (&k, &k_errors))?;
    expect_kept(io, &kv.slots, &kv.v_pages, (&v, &exact))
}

/// States heads of tokens in pages: those with a slot, each known to within its error.
pub(in crate::ops) fn expect_kept(
    io: &mut Oracle,
    slots: &View,
    pages: &View,
    (heads, errors): (&[f64], &[f64]),
) -> Result<(), KernelError> {
    let codes = pages.dtype() == DType::I8;
    let head_dim = pages.size(3) - if codes { kept::SCALE_BYTES } else { 0 };
    let (row, limit) = (pages.size(2) * head_dim, pages.size(0) * pages.size(1));
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (token, slot) in io.ints(slots)?.into_iter().enumerate() {
        if slot >= limit as i64 {
            return Err(KernelError::Index { op: Rope::NAME, what: "slot", index: slot, limit });
        }
        if slot >= 0 {
            order.push((slot as usize, token));
        }
    }
    order.sort_unstable();
    let (mut indices, mut values, mut off) = (Vec::new(), Vec::new(), Vec::new());
    for (slot, token) in order {
        indices.extend(slot * row..(slot + 1) * row);
        values.extend_from_slice(&heads[token * row..][..row]);
        off.extend_from_slice(&errors[token * row..][..row]);
    }
    if codes {
        return expect_codes(io, pages, &indices, &values, &off, head_dim);
    }
    io.expect_some(pages, Some(indices), values, off);
    Ok(())
}

/// States codes and scales of heads of `head_dim` values, `indices` of theirs in pages without scales. A code may be any that the value
/// and the scale, each within its error, are rounded to.
fn expect_codes(
    io: &mut Oracle,
    pages: &View,
    indices: &[usize],
    values: &[f64],
    errors: &[f64],
    head_dim: usize,
) -> Result<(), KernelError> {
    let (codes, scales) = kept::parts(pages)?;
    let u = DType::F32.roundoff();
    let (mut all, mut bounds, mut of_heads, mut scale_errors) = (vec![], vec![], vec![], vec![]);
    for (head, errors) in values.chunks(head_dim.max(1)).zip(errors.chunks(head_dim.max(1))) {
        let most = head.iter().fold(0f64, |most, x| most.max(x.abs()));
        let scale = if most > f64::from(kept::LEAST) { most / 127.0 } else { 0.0 };
        let off = errors.iter().fold(0f64, |most, x| most.max(*x)) / 127.0 + 2.0 * u * scale;
        of_heads.push(scale);
        scale_errors.push(off);
        for (value, error) in head.iter().zip(errors) {
            let quotient = if scale > 0.0 { value / scale } else { 0.0 };
            // The quotient by the factor 127 / most, which is rounded and may be that of a value beside.
            let off =
                if scale > 0.0 { error / scale + quotient.abs() * (off / scale + 4.0 * u) } else { 0.0 };
            let code = |x: f64| x.round_ties_even().clamp(-127.0, 127.0);
            let (low, middle, high) = (code(quotient - off), code(quotient), code(quotient + off));
            all.push(middle);
            bounds.push((high - middle).max(middle - low));
        }
    }
    let heads = indices.iter().step_by(head_dim.max(1)).map(|index| index / head_dim.max(1));
    io.expect_some(&scales, Some(heads.collect()), of_heads, scale_errors);
    io.expect_some(&codes, Some(indices.to_vec()), all, bounds);
    Ok(())
}

fn turned(
    op: &Rope,
    io: &Oracle,
    x: &View,
    weight: Option<&View>,
    turns: &Turns,
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
        turns.turn(row / heads, head, errors);
    }
    Ok((all, errors))
}
