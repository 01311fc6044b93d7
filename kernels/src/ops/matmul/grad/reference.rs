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
    use crate::buffer::Weights;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::matmul::grad::PartGrad;
    use crate::ops::{Matmul, grad_check};

    #[test]
    fn the_gradients_are_those_of_the_product() {
        let mut cx = CaseCx::new(7);
        let mut random = |shape: &[usize]| cx.random(shape, DType::F32, Fill::Normal(1.0));
        let (x, out, dz, dx) = (random(&[3, 4]), random(&[3, 7]), random(&[3, 7]), random(&[3, 4]));
        let [first, second] = [5, 2].map(|rows| [random(&[rows, 4]), random(&[rows, 4])]);
        let (bias, d_bias) = (random(&[5]), random(&[5]));
        let w = Weights::stack([
            Weights::dense(first[0].clone(), Some(bias.clone())).unwrap(),
            Weights::dense(second[0].clone(), None).unwrap(),
        ]);
        let forward = Matmul::new(x.clone(), w.unwrap(), out);
        let parts = [
            PartGrad { weight: Some(first[1].clone()), bias: Some(d_bias.clone()) },
            PartGrad { weight: Some(second[1].clone()), bias: None },
        ];
        let backward = MatmulGrad {
            dz,
            x: x.clone(),
            w: forward.w.clone(),
            dx: Some(dx.clone()),
            parts: parts.into_iter().collect(),
        };
        let results = [(&forward.out, &backward.dz)];
        let operands = [
            ("x", &x, &dx),
            ("first weight", &first[0], &first[1]),
            ("second weight", &second[0], &second[1]),
            ("bias", &bias, &d_bias),
        ];
        assert_eq!(grad_check::check(&cx, &forward, &results, &backward, &operands), Ok(()));
    }
}
