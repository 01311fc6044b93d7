//! Gates in f64.

use super::Gate;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &Gate, io: &mut Oracle) -> Result<(), KernelError> {
    let (x, gate) = (io.read(&op.x)?, io.read(&op.gate)?);
    let (mut values, mut errors) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for (x, gate) in x.into_iter().zip(gate) {
        let factor = 1.0 / (1.0 + (-gate).exp());
        // The argument of the exponential is rounded on the way to one of base 2.
        let inner = DType::F32.roundoff() * gate.abs();
        let error = tolerance::pointwise(inner, factor * (1.0 - factor), factor);
        values.push(x * factor);
        errors.push(x.abs() * error + 2.0 * DType::F32.roundoff() * (x * factor).abs());
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
