//! The gradients in f64.

use super::PointwiseGrad;
use crate::ops::act_grad::slope_with_error;
use crate::ops::sums::{Sum, expect_sums};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &PointwiseGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (x, d_out, d) = (io.read(&op.x)?, io.read(&op.d_out)?, op.x.size(1));
    let all = |view: &Option<_>| view.as_ref().map(|view| io.read(view)).transpose();
    let (col, row, by) = (all(&op.col)?, all(&op.row)?, all(&op.by)?);
    let u = DType::F32.roundoff();
    let cap = f64::from(op.softcap);
    let empty = || vec![Sum::default(); x.len()];
    let (mut dx, mut d_by, mut d_add, mut d_col) = (empty(), empty(), empty(), vec![Sum::default(); d]);
    for (i, (&x, &d_out)) in x.iter().zip(&d_out).enumerate() {
        let within = op.bounds.is_none_or(|[low, high]| f64::from(low) <= x && x <= f64::from(high));
        let (mut value, mut error) =
            (op.bounds.map_or(x, |[low, high]| x.clamp(low.into(), high.into())), 0.0);
        let (mut slope, mut slope_error) = (f64::from(u8::from(within)), 0.0);
        if cap != 0.0 {
            // As for the forward op, and the square of the hyperbolic secant, `4 e / (1 + e)^2` of `e = e^(-2 |t|)`: the exponential is off by
            // `4 |t| + 4` of 2^-24 relative to itself and what follows by 6, and `4 |t|` times the square is below 2.
            let t = value / cap;
            value = cap * t.tanh();
            error = cap.abs() * tolerance::pointwise(2.0 * u * t.abs().min(20.0), 1.0, value / cap);
            slope /= t.cosh().powi(2);
            slope_error = 16.0 * u * f64::from(u8::from(within));
        }
        let (act_slope, act_slope_error) = slope_with_error(op.act, value, error);
        (value, error) = op.act.with_error(value, error);
        slope_error = slope_error * act_slope.abs() + act_slope_error * (slope + slope_error);
        slope *= act_slope;

        let mut factor = f64::from(op.scale);
        factor *= row.as_ref().map_or(1.0, |row| row[i / d]);
        // Each of at most five products is rounded.
        let product = |a: f64, b: f64, b_error: f64| (a * b, a.abs() * b_error + 5.0 * u * (a * b).abs());
        let by = by.as_ref().map_or(1.0, |by| by[i]);
        let (term, term_error) = product(d_out * factor * by, value, error);
        d_col[i % d].add(term, term_error);
        factor *= col.as_ref().map_or(1.0, |col| col[i % d]);
        let (term, term_error) = product(d_out * factor, value, error);
        d_by[i].add(term, term_error);
        let (term, term_error) = product(d_out * factor * by, slope, slope_error);
        dx[i].add(term, term_error + u * term.abs());
        d_add[i].add(d_out, 0.0);
    }
    for (view, sums) in [(&op.dx, dx), (&op.d_col, d_col), (&op.d_by, d_by), (&op.d_add, d_add)] {
        expect_sums(io, view.as_ref(), &op.d_out, sums)?;
    }
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::buffer::View;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{Activation, Pointwise, grad_check};

    /// The forward op with all its factors, and its gradients; that of one operand may be in the place of the result's.
    fn pair(cx: &mut CaseCx, act: Activation, softcap: f32, place: &str) -> (Pointwise, PointwiseGrad) {
        // Apart from the bounds, where the function has no derivative.
        let x: Vec<f64> =
            (0..20).map(|_| (8.0 * cx.value(Fill::Normal(1.0))).round() / 8.0 + 1.0 / 16.0).collect();
        let x = cx.values(&[4, 5], DType::F32, &x);
        let mut random = |shape: &[usize]| -> View { cx.random(shape, DType::F32, Fill::Normal(1.0)) };
        let forward = Pointwise {
            bounds: Some([-1.25, 1.125]),
            softcap,
            act,
            scale: 0.75,
            col: Some(random(&[5])),
            row: Some(random(&[4])),
            by: Some(random(&[4, 5])),
            add: Some(random(&[4, 5])),
            ..Pointwise::new(x, random(&[4, 5]))
        };
        let d_out = random(&[4, 5]);
        let mut sum = |name: &str| Some(if name == place { d_out.clone() } else { random(&[4, 5]) });
        let (dx, d_by, d_add) = (sum("dx"), sum("d_by"), sum("d_add"));
        let backward = PointwiseGrad {
            bounds: forward.bounds,
            softcap,
            act,
            scale: forward.scale,
            col: forward.col.clone(),
            row: forward.row.clone(),
            by: forward.by.clone(),
            dx,
            d_col: Some(random(&[5])),
            d_by,
            d_add,
            ..PointwiseGrad::new(forward.x.clone(), d_out.clone(), d_out)
        };
        (forward, backward)
    }

    #[test]
    fn gradients_are_those_of_the_forward_op() {
        let mut cx = CaseCx::new(7);
        for act in [Activation::None, Activation::GeluTanh, Activation::GeluErf, Activation::Silu] {
            for (softcap, place) in
                [(0.0, "none"), (0.75, "none"), (1.5, "dx"), (0.5, "d_by"), (2.0, "d_add")]
            {
                let (forward, backward) = pair(&mut cx, act, softcap, place);
                let results = [(&forward.out, &backward.d_out)];
                let operands = [
                    ("x", Some(&forward.x), &backward.dx),
                    ("col", forward.col.as_ref(), &backward.d_col),
                    ("by", forward.by.as_ref(), &backward.d_by),
                    ("add", forward.add.as_ref(), &backward.d_add),
                ];
                let operands = operands
                    .map(|(name, operand, gradient)| (name, operand.unwrap(), gradient.as_ref().unwrap()));
                let checked = grad_check::check(&cx, &forward, &results, &backward, &operands);
                assert_eq!(checked, Ok(()), "{act:?}, softcap {softcap}, in place: {place}");
            }
        }
    }
}
