//! Gradients of rotary embedding in f64; angles are f32 products, as the forward contract says.

use super::{QkNormGrad, RopeGrad};
use crate::buffer::View;
use crate::op::Op;
use crate::ops::rope::RopeStyle;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

/// Values with the bounds of their errors.
type Bounded = (Vec<f64>, Vec<f64>);

pub(super) fn reference(op: &RopeGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (dq, dk) = (io.read(&op.dq)?, io.read(&op.dk)?);
    let (heads_q, row) = (op.dq.size(1), op.dk.size(1) * op.dk.size(2));
    let tokens: Vec<usize> = (0..op.dq.size(0)).collect();
    let (values, errors) = turned_back(op, io, &tokens, heads_q, dq)?;
    let norm = op.norm.as_ref();
    let through = |io: &mut Oracle, tokens: &[usize], heads, turned, of_keys| match norm {
        Some(norm) => normalized(norm, io, tokens, heads, turned, of_keys),
        None => Ok(turned),
    };
    let (values, errors) = through(io, &tokens, heads_q, (values, errors), false)?;
    io.expect(&op.dq, values, errors);
    let Some(kv) = &op.kv else {
        let turned = turned_back(op, io, &tokens, op.dk.size(1), dk)?;
        let (values, errors) = through(io, &tokens, op.dk.size(1), turned, true)?;
        io.expect(&op.dk, values, errors);
        return Ok(());
    };

    let limit = kv.dk_pages.size(0) * kv.dk_pages.size(1);
    let (mut written, mut from) = (Vec::new(), Vec::new());
    for (token, slot) in io.ints(&kv.slots)?.into_iter().enumerate().filter(|&(_, slot)| slot >= 0) {
        if slot >= limit as i64 {
            return Err(KernelError::Index { op: RopeGrad::NAME, what: "slot", index: slot, limit });
        }
        written.push(token);
        from.push(slot as usize);
    }
    let of_slots =
        |all: Vec<f64>| from.iter().flat_map(|slot| all[slot * row..(slot + 1) * row].to_vec()).collect();
    let indices: Vec<usize> = written.iter().flat_map(|token| token * row..(token + 1) * row).collect();
    let add = |io: &mut Oracle, view: &View, (mut values, mut errors): Bounded| {
        let before = io.read(view)?;
        for ((value, error), &index) in values.iter_mut().zip(&mut errors).zip(&indices) {
            *value += before[index];
            *error += DType::F32.roundoff() * (value.abs() + *error);
        }
        io.expect_some(view, Some(indices.clone()), values, errors);
        Ok::<_, KernelError>(())
    };
    let turned = turned_back(op, io, &written, op.dk.size(1), of_slots(io.read(&kv.dk_pages)?))?;
    let keys = through(io, &written, op.dk.size(1), turned, true)?;
    add(io, &op.dk, keys)?;
    if let Some(dv) = &kv.dv {
        let values: Vec<f64> = of_slots(io.read(&kv.dv_pages)?);
        let exact = vec![0.0; values.len()];
        add(io, dv, (values, exact))?;
    }
    Ok(())
}

/// Heads of some tokens, turned the other way than the tokens' heads were.
fn turned_back(
    op: &RopeGrad,
    io: &Oracle,
    tokens: &[usize],
    heads: usize,
    mut all: Vec<f64>,
) -> Result<Bounded, KernelError> {
    let (positions, inv_freq) = (io.ints(&op.positions)?, io.read(&op.inv_freq)?);
    let (axes, count) = (op.positions.size(0), op.positions.size(1));
    let axis = op.pair_axis.as_ref().map_or(Ok(vec![0; inv_freq.len()]), |view| io.ints(view))?;
    if let Some(&index) = axis.iter().find(|&&a| a < 0 || a as usize >= axes) {
        return Err(KernelError::Index { op: RopeGrad::NAME, what: "pair_axis", index, limit: axes });
    }
    let (head_dim, u) = (op.dq.size(2), DType::F32.roundoff());
    let scale = f64::from(op.attention_scaling);
    let mut errors = vec![0.0; all.len()];
    let rows = all.chunks_exact_mut(head_dim.max(1)).zip(errors.chunks_exact_mut(head_dim.max(1)));
    for (row, (head, errors)) in rows.enumerate() {
        let token = tokens[row / heads];
        for (pair, (&freq, &axis)) in inv_freq.iter().zip(&axis).enumerate() {
            let angle = f64::from(positions[axis as usize * count + token] as f32 * freq as f32);
            let (sin, cos) = angle.sin_cos();
            let (i, j) = match op.style {
                RopeStyle::Half => (pair, pair + inv_freq.len()),
                RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let (a, b) = (head[i], head[j]);
            head[i] = (a * cos + b * sin) * scale;
            head[j] = (b * cos - a * sin) * scale;
            // Sines and cosines are good to 4 units, and are rounded with the factor; so are products and sum.
            let error = (a.abs() + b.abs()) * 8.0 * u * scale.abs();
            (errors[i], errors[j]) = (error, error);
        }
    }
    Ok((all, errors))
}

/// Takes gradients of normalized heads of some tokens to those of the heads before, and states the gradient of the scale.
fn normalized(
    of: &QkNormGrad,
    io: &mut Oracle,
    tokens: &[usize],
    heads: usize,
    (mut all, mut errors): Bounded,
    of_keys: bool,
) -> Result<Bounded, KernelError> {
    let (x, weight, d_weight) =
        if of_keys { (&of.k, &of.norm.k, &of.d_k) } else { (&of.q, &of.norm.q, &of.d_q) };
    let (head_dim, u) = (x.size(2), DType::F32.roundoff());
    let (x, weight) = (io.read(x)?, io.read(weight)?);
    let weight: Vec<f64> = weight.iter().map(|w| w + f64::from(of.norm.weight_offset)).collect();
    let (mut sums, mut sum_errors, mut magnitudes) =
        (vec![0.0; head_dim], vec![0.0; head_dim], vec![0.0; head_dim]);
    let rows = all.chunks_exact_mut(head_dim.max(1)).zip(errors.chunks_exact_mut(head_dim.max(1)));
    for (row, (g, errors)) in rows.enumerate() {
        let x = &x[(tokens[row / heads] * heads + row % heads) * head_dim..][..head_dim];
        let n = head_dim as f64;
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n + f64::from(of.norm.eps)).sqrt();
        let r_error = tolerance::dot(head_dim, 1.0) + 6.0 * u;
        let (mut products, mut products_error, mut magnitude) = (0.0, 0.0, 0.0);
        for d in 0..head_dim {
            let product = g[d] * weight[d] * x[d];
            products += product;
            magnitude += product.abs();
            products_error += (errors[d] * weight[d] * x[d]).abs();

            sums[d] += g[d] * x[d] * r;
            magnitudes[d] += (g[d] * x[d] * r).abs();
            sum_errors[d] += (x[d] * r).abs() * (errors[d] + (g[d].abs() + errors[d]) * (r_error + 4.0 * u));
        }
        products_error += tolerance::dot(head_dim, magnitude + products_error) + 4.0 * u * magnitude;
        for d in 0..head_dim {
            let (scaled, mean) = (g[d] * weight[d] * r, x[d] * products / n * r.powi(3));
            let off = (errors[d] * weight[d] * r).abs() + (x[d] * products_error / n * r.powi(3)).abs();
            g[d] = scaled - mean;
            errors[d] = off + (scaled.abs() + 3.0 * mean.abs() + 3.0 * off) * (r_error + 4.0 * u);
        }
    }
    if let Some(view) = d_weight {
        let before = io.read(view)?;
        let terms = tokens.len() * heads + 1;
        for d in 0..head_dim {
            sum_errors[d] += tolerance::dot(terms, magnitudes[d] + sum_errors[d] + before[d].abs());
            sums[d] += before[d];
        }
        io.expect(view, sums, sum_errors);
    }
    Ok((all, errors))
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use crate::buffer::View;
    use crate::conformance::{Case, CaseCx};
    use crate::ops::grad_check;
    use crate::ops::rope::RopeStyle;
    use crate::ops::rope::cases::Plan;
    use crate::ops::rope::grad::cases::gradients;
    use crate::spec::DType;

    #[test]
    fn is_the_slope_of_the_forward_reference() {
        let plan = |name: &str| Plan { limit: 50, scaling: 1.5, ..Plan::new(name, 4).head(7, 3) };
        let pages = Some((DType::F32, 3));
        let plans = [
            plan("half"),
            Plan { style: RopeStyle::Interleaved, axes: 2, ..plan("interleaved") },
            Plan { norm: true, ..plan("norm").head(6, 2) },
            Plan { pages, heads_kv: 2, style: RopeStyle::Interleaved, ..plan("pages") },
            Plan { pages, heads_kv: 2, norm: true, axes: 3, sections: true, ..plan("norm, pages") },
        ];
        let mut cx = CaseCx::new(13);
        for plan in plans {
            let Case { name, op } = plan.build(&mut cx);
            let gradient = gradients(&mut cx, &op, true, 2);
            let mut results: Vec<(&View, &View)> = vec![(&op.q, &gradient.dq)];
            let mut operands = vec![("q", &op.q, &gradient.dq), ("k", &op.k, &gradient.dk)];
            match (&op.kv, &gradient.kv) {
                (Some(kv), Some(of)) => {
                    results.extend([(&kv.k_pages, &of.dk_pages), (&kv.v_pages, &of.dv_pages)]);
                    operands.push(("v", &kv.v, of.dv.as_ref().expect("wanted")));
                }
                _ => results.push((&op.k, &gradient.dk)),
            }
            if let (Some(norm), Some(of)) = (&op.norm, &gradient.norm) {
                operands.push(("q norm", &norm.q, of.d_q.as_ref().expect("wanted")));
                operands.push(("k norm", &norm.k, of.d_k.as_ref().expect("wanted")));
            }
            let checked = grad_check::check(&cx, &op, &results, &gradient, &operands);
            assert_eq!(checked, Ok(()), "{name}");
            let mut wrong = gradient.clone();
            wrong.attention_scaling *= 1.001;
            let checked = grad_check::check(&cx, &op, &results, &wrong, &operands);
            assert!(checked.is_err(), "{name}: another scale");
        }
    }
}
