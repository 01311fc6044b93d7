//! The gradients in f64.

use super::MatmulGrad;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &MatmulGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (m, n, k) = (op.x.size(0), op.w.n(), op.w.k());
    let (dz, x) = (io.read(&op.dz)?, io.read(&op.x)?);
    let u = DType::F32.roundoff();
    if let Some(dx) = &op.dx {
        let (w, zeros) = io.weights_and_zeros(&op.w)?;
        let before = io.read(dx)?;
        let picked = io.pick(m * k, n);
        let (mut values, mut errors) = (Vec::with_capacity(picked.len()), Vec::with_capacity(picked.len()));
        for &index in &picked {
            let (row, col) = (index / k, index % k);
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (j, a) in dz[row * n..][..n].iter().enumerate() {
                sum += a * w[j * k + col];
                magnitude += (a * w[j * k + col]).abs();
                // Decoders may form `q scale - zero` from rounded parts.
                magnitude += zeros.get(j * k + col).map_or(0.0, |zero| 2.0 * (a * zero).abs());
            }
            values.push(before[index] + sum);
            errors.push(tolerance::dot(n, magnitude) + 2.0 * u * (before[index].abs() + sum.abs()));
        }
        let indices = (picked.len() < m * k).then_some(picked);
        io.expect_some(dx, indices, values, errors);
    }
    let mut first = 0;
    for (grad, part) in op.parts.iter().zip(op.w.parts()) {
        if let Some(weight) = &grad.weight {
            let before = io.read(weight)?;
            let picked = io.pick(part.rows * k, m);
            let (mut values, mut errors) =
                (Vec::with_capacity(picked.len()), Vec::with_capacity(picked.len()));
            for &index in &picked {
                let (row, col) = (first + index / k, index % k);
                let (mut sum, mut magnitude) = (0.0, 0.0);
                for i in 0..m {
                    let product = dz[i * n + row] * x[i * k + col];
                    sum += product;
                    magnitude += product.abs();
                }
                values.push(before[index] + sum);
                errors.push(tolerance::dot(m, magnitude) + 2.0 * u * (before[index].abs() + sum.abs()));
            }
            let indices = (picked.len() < part.rows * k).then_some(picked);
            io.expect_some(weight, indices, values, errors);
        }
        if let Some(bias) = &grad.bias {
            let before = io.read(bias)?;
            let (mut values, mut errors) = (Vec::with_capacity(part.rows), Vec::with_capacity(part.rows));
            for (index, before) in before.into_iter().enumerate() {
                let column = || (0..m).map(|i| dz[i * n + first + index]);
                values.push(before + column().sum::<f64>());
                errors.push(tolerance::dot(m, before.abs() + column().map(f64::abs).sum::<f64>()));
            }
            io.expect(bias, values, errors);
        }
        first += part.rows;
    }
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::buffer::{View, Weights};
    use crate::conformance::{CaseCx, Fill};
    use crate::op::Op;
    use crate::ops::Matmul;
    use crate::ops::matmul::grad::PartGrad;

    /// The forward reference's products times `c`, summed.
    fn weighed(x: &View, w: &Weights, out: &View, c: &[f64], cx: &CaseCx) -> f64 {
        let mut io = Oracle::new(cx.id(), false);
        Matmul::new(x.clone(), w.clone(), out.clone()).reference(&mut io).expect("products");
        io.into_expected().iter().flat_map(|expected| &expected.values).zip(c).map(|(a, b)| a * b).sum()
    }

    /// Products are linear in each operand: central differences of the forward reference are exact but for rounding.
    #[test]
    fn gradients_are_those_of_the_product() {
        let mut cx = CaseCx::new(7);
        let (m, n, k) = (3, 5, 4);
        let mut fill = |shape: &[usize]| -> Vec<f64> {
            (0..shape.iter().product()).map(|_| cx.value(Fill::Normal(1.0)) as f32 as f64).collect()
        };
        let (xs, ws, bs, c) = (fill(&[m, k]), fill(&[n, k]), fill(&[n]), fill(&[m, n]));
        let zeros = |len: usize| vec![0.0; len];
        let weights = |cx: &mut CaseCx, ws: &[f64], bs: &[f64]| {
            let bias = cx.values(&[n], DType::F32, bs);
            Weights::dense(cx.values(&[n, k], DType::F32, ws), Some(bias)).expect("weights")
        };
        let w = weights(&mut cx, &ws, &bs);
        let (weight, bias) =
            (cx.values(&[n, k], DType::F32, &zeros(n * k)), cx.values(&[n], DType::F32, &zeros(n)));
        let op = MatmulGrad {
            dz: cx.values(&[m, n], DType::F32, &c),
            x: cx.values(&[m, k], DType::F32, &xs),
            dx: Some(cx.values(&[m, k], DType::F32, &zeros(m * k))),
            w,
            parts: [PartGrad { weight: Some(weight), bias: Some(bias) }].into_iter().collect(),
        };
        op.spec().expect("a spec");
        let mut io = Oracle::new(cx.id(), false);
        op.reference(&mut io).expect("gradients");
        let found: Vec<f64> =
            io.into_expected().iter().flat_map(|expected| expected.values.clone()).collect();

        let all: Vec<f64> = xs.iter().chain(&ws).chain(&bs).copied().collect();
        // A power of two: moved values are numbers of f32 as long as their low bits allow, so the step is what it was.
        let step = 2f64.powi(-6);
        let out = cx.output(&[m, n], DType::F32);
        for (at, found) in found.into_iter().enumerate() {
            let mut at_step = |by: f64| {
                let mut moved = all.clone();
                moved[at] = f64::from((moved[at] + by) as f32);
                let x = cx.values(&[m, k], DType::F32, &moved[..m * k]);
                let w = weights(&mut cx, &moved[m * k..][..n * k], &moved[m * k + n * k..]);
                (moved[at], weighed(&x, &w, &out, &c, &cx))
            };
            let ((high_at, high), (low_at, low)) = (at_step(step), at_step(-step));
            let slope = (high - low) / (high_at - low_at);
            assert!((slope - found).abs() < 1e-9 * (1.0 + slope.abs()), "{at}: {slope} and {found}");
        }
    }
}
