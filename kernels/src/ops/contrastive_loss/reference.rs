//! Loss and gradients in f64.

use super::{ContrastiveKind, ContrastiveLoss};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

/// A number and a bound of what f32 arithmetic errs by.
#[derive(Clone, Copy, Default)]
struct Near {
    value: f64,
    error: f64,
}

/// Sums of terms that err, in f32.
#[derive(Clone, Copy, Default)]
struct Terms {
    sum: f64,
    error: f64,
    magnitude: f64,
}

impl Terms {
    fn add(&mut self, value: f64, error: f64) {
        self.sum += value;
        self.error += error;
        self.magnitude += value.abs();
    }

    fn near(&self, terms: usize) -> Near {
        Near { value: self.sum, error: self.error + tolerance::dot(terms, self.magnitude) }
    }
}

const TINY: f64 = f32::MIN_POSITIVE as f64;

pub(super) fn reference(op: &ContrastiveLoss, io: &mut Oracle) -> Result<(), KernelError> {
    let (n, d) = (op.a.size(0), op.a.size(1));
    let (a, b) = (io.read(&op.a)?, io.read(&op.b)?);
    let one = |io: &Oracle, view: &crate::View| {
        Ok::<_, KernelError>(io.read(view)?.first().copied().unwrap_or(0.0))
    };
    let factor = one(io, &op.scale)?.exp();
    let bias = op.bias.as_ref().map_or(Ok(0.0), |bias| one(io, bias))?;
    let u = DType::F32.roundoff();

    let mut z = Vec::with_capacity(n * n);
    for i in 0..n {
        for j in 0..n {
            let terms = (0..d).map(|k| a[i * d + k] * b[j * d + k]);
            let (mut sum, mut magnitude) = (0.0, 0.0);
            terms.for_each(|term| {
                sum += term;
                magnitude += term.abs();
            });
            let value = factor * sum + bias;
            // The factor is rounded, and so are the product with it and the sum.
            let error =
                factor * tolerance::dot(d, magnitude) + 3.0 * u * (factor * sum).abs() + u * value.abs();
            z.push(Near { value, error });
        }
    }
    let (loss, dz) = match op.kind {
        ContrastiveKind::Softmax => softmax(n, &z),
        ContrastiveKind::Sigmoid => sigmoid(n, &z),
    };
    io.expect(&op.loss, vec![loss.value], vec![loss.error]);

    // Products of the gradient of the logits with the vectors of the other side.
    let vectors = |from: &[f64], at: &dyn Fn(usize, usize) -> usize| -> (Vec<f64>, Vec<f64>) {
        let mut all = Vec::with_capacity(n * d);
        for (row, k) in (0..n).flat_map(|row| (0..d).map(move |k| (row, k))) {
            let mut terms = Terms::default();
            for other in 0..n {
                let (dz, x) = (dz[at(row, other)], factor * from[other * d + k]);
                terms.add(dz.value * x, dz.error * x.abs() + 3.0 * u * (dz.value * x).abs());
            }
            all.push(terms.near(n));
        }
        all.iter().map(|near| (near.value, near.error + TINY)).unzip()
    };
    if let Some(da) = &op.da {
        let (values, errors) = vectors(&b, &|row, other| row * n + other);
        io.expect(da, values, errors);
    }
    if let Some(db) = &op.db {
        let (values, errors) = vectors(&a, &|row, other| other * n + row);
        io.expect(db, values, errors);
    }
    let (mut of_scale, mut of_bias) = (Terms::default(), Terms::default());
    for (dz, z) in dz.iter().zip(&z) {
        let from_bias = z.value - bias;
        let off = z.error + 2.0 * u * (z.value.abs() + bias.abs());
        of_scale.add(dz.value * from_bias, dz.error * (from_bias.abs() + off) + dz.value.abs() * off);
        of_bias.add(dz.value, dz.error);
    }
    for (view, terms) in [(&op.d_scale, of_scale), (&op.d_bias, of_bias)] {
        let Some(view) = view else { continue };
        // Sums of a row are of f32, those of rows of f64.
        let (before, near) = (one(io, view)?, terms.near(n));
        io.expect(
            view,
            vec![before + near.value],
            vec![near.error + 2.0 * u * (before.abs() + near.value.abs())],
        );
    }
    Ok(())
}

/// Logarithm of the sum of exponentials.
fn log_sum(z: &[Near]) -> Near {
    let u = DType::F32.roundoff();
    let most = z.iter().fold(f64::NEG_INFINITY, |most, z| most.max(z.value));
    let total: f64 = z.iter().map(|z| (z.value - most).exp()).sum();
    let value = total.ln() + most;
    // By how much each exponential errs, as a share of it; those that f32 does not hold are lost.
    let off = |z: &Near| z.error + 2.0 * u * (z.value - most).abs() + 8.0 * u;
    let share = |z: &Near| (z.value - value).exp();
    let of_terms: f64 = z.iter().map(|z| share(z) * off(z).exp_m1()).sum();
    let lost = z.len() as f64 * TINY;
    let error = of_terms + lost + tolerance::dot(z.len(), 1.0) + 4.0 * u * (most.abs() + value.abs() + 1.0);
    Near { value, error }
}

fn softmax(n: usize, z: &[Near]) -> (Near, Vec<Near>) {
    let u = DType::F32.roundoff();
    let column = |j: usize| z.iter().skip(j).step_by(n).copied().collect::<Vec<_>>();
    let rows: Vec<Near> = z.chunks(n.max(1)).map(log_sum).collect();
    let cols: Vec<Near> = (0..n).map(|j| log_sum(&column(j))).collect();
    let share = 0.5 / n.max(1) as f64;
    let (mut loss, mut dz) = (Near::default(), Vec::with_capacity(z.len()));
    for (i, row) in rows.iter().enumerate() {
        let own = z[i * n + i];
        loss.value += share * (row.value + cols[i].value - 2.0 * own.value);
        loss.error += share * (row.error + cols[i].error + 2.0 * own.error);
        for (j, col) in cols.iter().enumerate() {
            let z = z[i * n + j];
            let of = |sum: &Near| {
                let share = (z.value - sum.value).exp();
                let off = z.error + sum.error + 2.0 * u * (z.value - sum.value).abs() + 8.0 * u;
                Near { value: share, error: share * off.exp_m1() + TINY }
            };
            let (row, col) = (of(row), of(col));
            let hit = if i == j { 2.0 } else { 0.0 };
            let value = share * (row.value + col.value - hit);
            let rounded = 4.0 * u * (row.value + col.value + hit);
            dz.push(Near { value, error: share * (row.error + col.error + rounded) + TINY });
        }
    }
    (loss, dz)
}

fn sigmoid(n: usize, z: &[Near]) -> (Near, Vec<Near>) {
    let u = DType::F32.roundoff();
    let (mut terms, mut dz) = (Terms::default(), Vec::with_capacity(z.len()));
    for (at, z) in z.iter().enumerate() {
        let sign = if at / n == at % n { -1.0 } else { 1.0 };
        let x = sign * z.value;
        // `ln (1 + exp x)`, and its slope.
        let value = x.max(0.0) + (-x.abs()).exp().ln_1p();
        let slope = if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
        let off = z.error.exp_m1();
        terms.add(value, slope * z.error * z.error.exp() + 12.0 * u * value + TINY);
        let share = sign * slope / n as f64;
        dz.push(Near { value: share, error: share.abs() * (off + 12.0 * u * off.exp()) + TINY });
    }
    let sum = terms.near(n);
    let pairs = n.max(1) as f64;
    (Near { value: sum.value / pairs, error: sum.error / pairs }, dz)
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::grad_check;
    use crate::spec::DType::F32;

    #[test]
    fn the_gradients_are_those_of_the_loss() {
        for kind in [ContrastiveKind::Softmax, ContrastiveKind::Sigmoid] {
            let mut cx = CaseCx::new(5);
            let (a, b) =
                (cx.random(&[4, 3], F32, Fill::Normal(1.0)), cx.random(&[4, 3], F32, Fill::Normal(1.0)));
            let (scale, bias) = (cx.values(&[1], F32, &[0.25]), cx.values(&[1], F32, &[-0.5]));
            let zeros = |cx: &mut CaseCx| cx.values(&[4, 3], F32, &[0.0; 12]);
            let (da, db) = (zeros(&mut cx), zeros(&mut cx));
            let (d_scale, d_bias) = (cx.values(&[1], F32, &[2.0]), cx.values(&[1], F32, &[-3.0]));
            let one = cx.values(&[1], F32, &[1.0]);
            let forward = ContrastiveLoss {
                a: a.clone(),
                b: b.clone(),
                scale: scale.clone(),
                bias: Some(bias.clone()),
                kind,
                loss: cx.output(&[1], F32),
                da: None,
                db: None,
                d_scale: None,
                d_bias: None,
            };
            let backward = ContrastiveLoss {
                loss: cx.output(&[1], F32),
                da: Some(da.clone()),
                db: Some(db.clone()),
                d_scale: Some(d_scale.clone()),
                d_bias: (kind == ContrastiveKind::Sigmoid).then(|| d_bias.clone()),
                ..forward.clone()
            };
            let mut operands = vec![("a", &a, &da), ("b", &b, &db), ("scale", &scale, &d_scale)];
            // All logits move together by the bias: the softmax does not see it.
            if kind == ContrastiveKind::Sigmoid {
                operands.push(("bias", &bias, &d_bias));
            }
            let results = [(&forward.loss, &one)];
            let checked = grad_check::check(&cx, &forward, &results, &backward, &operands);
            assert_eq!(checked, Ok(()), "{kind:?}");
        }
    }
}
