//! The products in f64.

use super::ExpertMatmul;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &ExpertMatmul, io: &mut Oracle) -> Result<(), KernelError> {
    let (k, n, n_out) = (op.w.k(), op.n(), op.n_out());
    let x = io.read(&op.x)?;
    let (w, zeros) = io.weights_and_zeros(&op.w)?;
    let ids = io.ints(&op.ids)?;
    let limit = op.experts;
    if let Some(&index) = ids.iter().find(|&&id| id < 0 || id as usize >= limit) {
        return Err(KernelError::Index { op: ExpertMatmul::NAME, what: "id", index, limit });
    }
    let product = |row: usize, col: usize| {
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for (a, b) in x[row * k..][..k].iter().zip(&w[col * k..][..k]) {
            sum += a * b;
            magnitude += (a * b).abs();
        }
        // Kernels may sum `x q` and `x zero` apart: `|q| + |zero| <= |q - zero| + 2 |zero|`.
        if let Some(zeros) = zeros.get(col * k..(col + 1) * k) {
            magnitude +=
                x[row * k..][..k].iter().zip(zeros).map(|(a, zero)| 2.0 * (a * zero).abs()).sum::<f64>();
        }
        (sum, tolerance::dot(k, magnitude))
    };
    let picked = io.pick(op.out.len(), if op.gated { 2 * k } else { k });
    let (mut values, mut errors) = (Vec::with_capacity(picked.len()), Vec::with_capacity(picked.len()));
    for &index in &picked {
        let (choice, col) = (index / n_out, index % n_out);
        let (row, first) = (choice / op.share, ids[choice] as usize * n);
        let (sum, error) = product(row, first + col);
        let (mut value, mut error) = op.act.with_error(sum, error);
        if op.gated {
            let (up, up_error) = product(row, first + n_out + col);
            error = error * up.abs() + up_error * value.abs() + error * up_error;
            value *= up;
            error += 2.0 * DType::F32.roundoff() * value.abs();
        }
        values.push(value);
        errors.push(error);
    }
    let indices = (picked.len() < op.out.len()).then_some(picked);
    io.expect_some(&op.out, indices, values, errors);
    Ok(())
}
