//! The step in f64.

use super::AdamW;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError};

pub(super) fn reference(op: &AdamW, io: &mut Oracle) -> Result<(), KernelError> {
    let (param, grad, m, v) = (io.read(&op.param)?, io.read(&op.grad)?, io.read(&op.m)?, io.read(&op.v)?);
    let u = DType::F32.roundoff();
    let step = op.step;
    let [rate, beta1, beta2, eps, decay, correction1, correction2, scale] = [
        step.rate,
        step.beta1,
        step.beta2,
        step.eps,
        step.decay,
        step.correction1,
        step.correction2,
        step.scale,
    ]
    .map(f64::from);
    let mut all: [(Vec<f64>, Vec<f64>); 3] = Default::default();
    for (((&param, &grad), &m), &v) in param.iter().zip(&grad).zip(&m).zip(&v) {
        let grad = grad * scale;
        let (first, second) = (beta1 * m + (1.0 - beta1) * grad, beta2 * v + (1.0 - beta2) * grad * grad);
        // Each term is rounded a few times; `1 - beta` is itself a rounded number, off by up to `u` beside it.
        let first_off = 4.0 * u * ((beta1 * m).abs() + ((1.0 - beta1) * grad).abs()) + u * grad.abs();
        let second_off = 4.0 * u * second + u * grad * grad;
        let root = (second / correction2).sqrt();
        // `sqrt(a + d) - sqrt(a)` is at most `d / (2 sqrt(a))`, and at most `sqrt(d)`.
        let of_root = second_off / correction2;
        let root_off = (of_root / (2.0 * root).max(f64::MIN_POSITIVE)).min(of_root.sqrt()) + 4.0 * u * root;
        let bottom = root + eps;
        let move_by = rate / correction1 * first / bottom;
        let move_off = rate / correction1 * (first_off / bottom + first.abs() * root_off / (bottom * bottom))
            + 8.0 * u * move_by.abs();
        let kept = param * (1.0 - rate * decay);
        let value = kept - move_by;
        for ((values, errors), (value, error)) in all.iter_mut().zip([
            (value, move_off + 4.0 * u * (kept.abs() + value.abs()) + u * param.abs()),
            (first, first_off),
            (second, second_off),
        ]) {
            values.push(value);
            errors.push(error + f64::from(f32::MIN_POSITIVE));
        }
    }
    let zeros = vec![0.0; param.len()];
    io.expect(&op.grad, zeros.clone(), zeros);
    for (view, (values, errors)) in [&op.param, &op.m, &op.v].into_iter().zip(all) {
        io.expect(view, values, errors);
    }
    Ok(())
}
