//! Probabilities in f64.

use super::Softmax;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &Softmax, io: &mut Oracle) -> Result<(), KernelError> {
    let d = op.x.size(1);
    let x = io.read(&op.x)?;
    let (mut values, mut errors) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    let u = DType::F32.roundoff();
    for row in x.chunks_exact(d.max(1)) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = row.iter().map(|logit| (logit - most).exp()).collect();
        let total: f64 = powers.iter().sum();
        // What the rounding of each difference and the exponential of it do to a power, as a share of it.
        let off = |logit: f64| 2.0 * u * (logit - most).abs() + 8.0 * u;
        let of_powers: f64 = row.iter().zip(&powers).map(|(&logit, power)| off(logit) * power).sum();
        // Powers below the least normal number may be none.
        let lost = d as f64 * f64::from(f32::MIN_POSITIVE);
        let of_total = (of_powers + lost) / total + tolerance::dot(d, 1.0);
        for (&logit, power) in row.iter().zip(&powers) {
            let value = power / total;
            let inner = value * (off(logit) + of_total + 2.0 * u) + f64::from(f32::MIN_POSITIVE);
            errors.push(inner);
            values.push(value);
        }
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
