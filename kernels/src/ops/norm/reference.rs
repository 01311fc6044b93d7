//! Normalization in f64, two passes over each row.

use super::{Norm, NormKind};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &Norm, io: &mut Oracle) -> Result<(), KernelError> {
    let d = op.x.size(1);
    let mut s = io.read(&op.x)?;
    let u = DType::F32.roundoff();
    let mut sum_errors = vec![0.0; s.len()];
    if let Some(add) = &op.add {
        for ((s, error), add) in s.iter_mut().zip(&mut sum_errors).zip(io.read(add)?) {
            *s += add;
            *error = u * s.abs();
        }
    }
    let all = |view: &Option<_>, or: f64| view.as_ref().map_or(Ok(vec![or; d]), |view| io.read(view));
    let (weight, bias) = (all(&op.weight, 1.0 - f64::from(op.weight_offset))?, all(&op.bias, 0.0)?);

    let (mut values, mut errors) = (Vec::with_capacity(s.len()), Vec::with_capacity(s.len()));
    for row in s.chunks_exact(d.max(1)) {
        let count = d as f64;
        let mean_abs = row.iter().map(|v| v.abs()).sum::<f64>() / count;
        let mean = match op.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => row.iter().sum::<f64>() / count,
        };
        let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
        let scale = 1.0 / (var + f64::from(op.eps)).sqrt();
        // The sum may be rounded to its own type before it is normalized.
        let rounding = if op.sum.is_some() { op.x.dtype().roundoff().max(u) } else { u };
        let mean_error = if op.kind == NormKind::Layer { tolerance::dot(d, mean_abs) } else { 0.0 };
        let centred_error = |v: f64| 2.0 * rounding * (v.abs() + mean.abs()) + mean_error;
        let rms_error = (row.iter().map(|&v| centred_error(v).powi(2)).sum::<f64>() / count).sqrt();
        let scale_error = tolerance::dot(d, 1.0) + rms_error * scale + 4.0 * u;
        for (col, &v) in row.iter().enumerate() {
            let factor = weight[col] + f64::from(op.weight_offset);
            let unit = (v - mean) * scale;
            let value = unit * factor + bias[col];
            errors.push(
                factor.abs() * (centred_error(v) * scale + unit.abs() * scale_error)
                    + 6.0 * u * (value.abs() + bias[col].abs()),
            );
            values.push(value);
        }
    }
    if let Some(sum) = &op.sum {
        io.expect(sum, s, sum_errors);
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
