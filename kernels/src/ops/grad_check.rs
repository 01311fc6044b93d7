//! Checks what the reference of a gradient op states against central differences of the forward op's reference.
//!
//! The gradients `d` of the forward op's results make a number of them, `loss = sum(d * result)`, whose derivative by each element of an
//! operand is what the gradient op is to give. Both references compute in f64, so a step takes few digits.

use crate::buffer::View;
use crate::conformance::CaseCx;
use crate::op::Op;
use crate::oracle::{Oracle, encode};

/// Distance of an operand's element from the middle. Operands are rounded to multiples of it, so that f32 holds the elements that are
/// one and two steps away.
const STEP: f64 = 1.0 / 1024.0;

/// Errors unless `backward` states the gradients of `forward`.
///
/// - `results`: each result of the forward op, which may be an operand that it replaces, and its gradient, an operand of `backward`.
/// - `operands`: name, operand of the forward op and its gradient, a result of `backward`. It is added to what is there, or, where it has
///   the very elements of a result's gradient, replaces it. Elements that `backward` does not state are to have no gradient.
///
/// All are f32 in memory of `cx`, and operands that both ops read are the same views. Elements of `operands` are rounded to multiples of
/// 1/1024 and are to be below 2^13. The forward op is smooth around them.
pub(super) fn check<F: Op, G: Op>(
    cx: &CaseCx,
    forward: &F,
    results: &[(&View, &View)],
    backward: &G,
    operands: &[(&str, &View, &View)],
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", G::NAME);
    forward.spec().map_err(|error| failed(&error))?;
    backward.spec().map_err(|error| failed(&error))?;
    for (_, operand, _) in operands {
        let values: Vec<f64> =
            read(cx, operand)?.into_iter().map(|value| (value / STEP).round() * STEP).collect();
        write(cx, operand, &values)?;
    }
    let mut oracle = Oracle::new(cx.id(), false);
    backward.reference(&mut oracle).map_err(|error| failed(&error))?;
    let stated = oracle.into_expected();

    let mut rows = Vec::new();
    for &(name, operand, gradient) in operands {
        let before = read(cx, gradient)?;
        let replaced = results.iter().any(|(_, of_result)| gradient.same_elements(of_result));
        let mut found = vec![0.0; gradient.len()];
        let mut any = false;
        for one in stated.iter().filter(|one| one.view.same_elements(gradient)) {
            one.check()?;
            any = true;
            for (i, value) in one.values.iter().enumerate() {
                let index = one.indices.as_ref().map_or(i, |indices| indices[i]);
                found[index] = value - if replaced { 0.0 } else { before[index] };
            }
        }
        if !any {
            return Err(failed(&format!("{name}: nothing is stated")));
        }
        if operand.shape() != gradient.shape() {
            return Err(failed(&format!("{name}: {:?} and {:?}", operand.shape(), gradient.shape())));
        }
        let values = read(cx, operand)?;
        for (index, &found) in found.iter().enumerate() {
            let at = |steps: f64| {
                let mut moved = values.clone();
                moved[index] += steps * STEP;
                write(cx, operand, &moved)?;
                loss(cx, forward, results)
            };
            let (near, far) = ([at(1.0)?, at(-1.0)?], [at(2.0)?, at(-2.0)?]);
            let slope = |[up, down]: [(f64, f64); 2], steps: f64| (up.0 - down.0) / (2.0 * steps * STEP);
            let (one, two) = (slope(near, 1.0), slope(far, 2.0));
            // Both are off by a multiple of the square of their step, which this takes away: what is left goes with the fourth power.
            let expected = (4.0 * one - two) / 3.0;
            let magnitude = near.iter().chain(&far).fold(0.0f64, |most, (_, magnitude)| most.max(*magnitude));
            let rounding = 64.0 * f64::EPSILON * magnitude / STEP;
            let allowed = (two - one).abs() + rounding;
            rows.push((name, index, found, expected, allowed));
        }
        write(cx, operand, &values)?;
    }
    // Where the third derivative happens to vanish, the fourth power of the step on the scale of all gradients is left.
    let scale = rows.iter().fold(0.0f64, |most, row| most.max(row.3.abs()));
    if scale == 0.0 {
        return Err(failed(&"no operand has a gradient"));
    }
    for (name, index, found, expected, allowed) in rows {
        let allowed = allowed + 1024.0 * STEP.powi(4) * scale;
        if (found - expected).abs().partial_cmp(&allowed).is_none_or(std::cmp::Ordering::is_gt) {
            return Err(failed(&format!(
                "element {index} of {name}: expected {expected:e} within {allowed:e}, found {found:e}"
            )));
        }
    }
    Ok(())
}

/// The number that the gradients of the results make of them, and the sum of the sizes of its terms.
fn loss<F: Op>(cx: &CaseCx, forward: &F, results: &[(&View, &View)]) -> Result<(f64, f64), String> {
    let mut oracle = Oracle::new(cx.id(), false);
    forward.reference(&mut oracle).map_err(|error| format!("{}: {error}", F::NAME))?;
    let stated = oracle.into_expected();
    let (mut sum, mut magnitude) = (0.0, 0.0);
    for (result, gradient) in results {
        let weights = read(cx, gradient)?;
        let mut any = false;
        for one in stated.iter().filter(|one| one.view.same_elements(result)) {
            any = true;
            for (i, value) in one.values.iter().enumerate() {
                let term = value * weights[one.indices.as_ref().map_or(i, |indices| indices[i])];
                sum += term;
                magnitude += term.abs();
            }
        }
        if !any {
            return Err(format!("{}: a result is not stated: {result:?}", F::NAME));
        }
    }
    Ok((sum, magnitude))
}

fn read(cx: &CaseCx, view: &View) -> Result<Vec<f64>, String> {
    Oracle::new(cx.id(), false).read(view).map_err(|error| error.to_string())
}

fn write(cx: &CaseCx, view: &View, values: &[f64]) -> Result<(), String> {
    let mut bytes = Vec::new();
    values.iter().for_each(|&value| encode(view.dtype(), value, &mut bytes));
    view.fill_from(&bytes, cx.id()).map_err(|error| error.to_string())
}

mod tests {
    use super::*;
    use crate::conformance::Fill;
    use crate::ops::{Rope, RopeStyle};
    use crate::spec::DType;

    /// The gradient of a rotation is turned the other way; by any other way it is not the gradient.
    #[test]
    fn a_wrong_gradient_is_found() {
        let mut cx = CaseCx::new(3);
        let positions = [5, 0, 17];
        let mut turn = |sign: i32, style| Rope {
            q: cx.random(&[3, 2, 6], DType::F32, Fill::Normal(1.0)),
            k: cx.random(&[3, 0, 6], DType::F32, Fill::Normal(1.0)),
            positions: cx.ints(&[1, 3], &positions.map(|position| sign * position)),
            inv_freq: cx.values(&[3], DType::F32, &[1.0, 0.25, 0.03]),
            pair_axis: None,
            style,
            attention_scaling: 1.0,
            norm: None,
            kv: None,
        };
        let forward = turn(1, RopeStyle::Half);
        let backward =
            [turn(-1, RopeStyle::Half), turn(1, RopeStyle::Half), turn(-1, RopeStyle::Interleaved)];
        let found = backward.map(|backward| {
            let (results, operands) = ([(&forward.q, &backward.q)], [("q", &forward.q, &backward.q)]);
            check(&cx, &forward, &results, &backward, &operands)
        });
        assert_eq!(found[0], Ok(()));
        assert!(found[1].is_err() && found[2].is_err(), "{found:?}");
    }
}
