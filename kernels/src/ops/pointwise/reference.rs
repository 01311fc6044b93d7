//! The function in f64.

use super::Pointwise;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &Pointwise, io: &mut Oracle) -> Result<(), KernelError> {
    let (x, d) = (io.read(&op.x)?, op.x.size(1).max(1));
    let all = |view: &Option<_>| view.as_ref().map(|view| io.read(view)).transpose();
    let (col, row, by, add) = (all(&op.col)?, all(&op.row)?, all(&op.by)?, all(&op.add)?);
    let u = DType::F32.roundoff();
    let cap = f64::from(op.softcap);
    let (mut values, mut errors) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for (i, &x) in x.iter().enumerate() {
        let x = op.bounds.map_or(x, |[low, high]| x.clamp(low.into(), high.into()));
        let (mut value, mut error) = (x, 0.0);
        if cap != 0.0 {
            // A quotient, a function with a slope of at most 1, a product.
            value = cap * (x / cap).tanh();
            error = cap.abs() * tolerance::pointwise(2.0 * u * (x / cap).abs().min(20.0), 1.0, value / cap);
        }
        (value, error) = op.act.with_error(value, error);
        let mut factor = f64::from(op.scale);
        factor *= col.as_ref().map_or(1.0, |col| col[i % d]);
        factor *= row.as_ref().map_or(1.0, |row| row[i / d]);
        factor *= by.as_ref().map_or(1.0, |by| by[i]);
        value *= factor;
        error = error * factor.abs() + 5.0 * u * value.abs();
        if let Some(add) = &add {
            value += add[i];
            error += 2.0 * u * (value.abs() + add[i].abs());
        }
        values.push(value);
        errors.push(error);
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
