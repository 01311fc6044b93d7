//! Normalization in f64, two passes over each group.

use super::GroupNorm;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &GroupNorm, io: &mut Oracle) -> Result<(), KernelError> {
    let (x, channels) = (io.read(&op.x)?, op.x.size(1));
    let (weight, bias) = (io.read(&op.weight)?, io.read(&op.bias)?);
    let (each, u) = (channels / op.groups, DType::F32.roundoff());
    let (mut values, mut errors) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    let terms = op.rows * each;
    for (picture, group) in (0..op.pictures()).flat_map(|picture| (0..op.groups).map(move |g| (picture, g))) {
        let first = picture * op.rows * channels + group * each;
        let places = || (0..op.rows).flat_map(|row| (0..each).map(move |i| first + row * channels + i));
        let count = terms.max(1) as f64;
        let mean_abs = places().map(|at| x[at].abs()).sum::<f64>() / count;
        let mean = places().map(|at| x[at]).sum::<f64>() / count;
        let var = places().map(|at| (x[at] - mean).powi(2)).sum::<f64>() / count;
        let scale = 1.0 / (var + f64::from(op.eps)).sqrt();
        let mean_error = tolerance::dot(terms, mean_abs);
        let centred_error = |v: f64| 2.0 * u * (v.abs() + mean.abs()) + mean_error;
        let rms_error = (places().map(|at| centred_error(x[at]).powi(2)).sum::<f64>() / count).sqrt();
        let scale_error = tolerance::dot(terms, 1.0) + rms_error * scale + 4.0 * u;
        for at in places() {
            let (weight, bias) = (weight[at % channels], bias[at % channels]);
            let unit = (x[at] - mean) * scale;
            let value = unit * weight + bias;
            let error = weight.abs() * (centred_error(x[at]) * scale + unit.abs() * scale_error)
                + 6.0 * u * ((unit * weight).abs() + bias.abs());
            (values[at], errors[at]) = op.act.with_error(value, error);
        }
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
