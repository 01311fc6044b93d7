//! The only place where a tolerance is derived.
//!
//! Rounding errors of a sum behave like a random walk: with probability above `1 - 2 exp(-LAMBDA^2 / 2)` the error of
//! `terms` additions is below `LAMBDA * sqrt(terms) * u * S`, `S = sum |a * b|` (Higham and Mary, "A new approach to
//! probabilistic rounding error analysis", 2019). `LAMBDA = 6` makes a false alarm rarer than one in 10^7 per value.

use super::DType;

const LAMBDA: f64 = 6.0;

/// Error of a dot product of `terms` products accumulated in f32, where `magnitude` is `sum |a * b|`.
#[must_use]
pub fn dot(terms: usize, magnitude: f64) -> f64 {
    LAMBDA * (terms as f64 + 4.0).sqrt() * DType::F32.roundoff() * magnitude
}

/// Error of a dot product whose factors were each rounded to `dtype` first.
#[must_use]
pub fn rounded_dot(terms: usize, magnitude: f64, dtype: DType) -> f64 {
    dot(terms, magnitude) + 2.0 * dtype.roundoff() * magnitude
}

/// Error of a pointwise function computed in f32 with an argument error of `inner`, a Lipschitz constant of `slope`
/// and a result of size `value`: vector approximations are good to 4 ulp.
#[must_use]
pub fn pointwise(inner: f64, slope: f64, value: f64) -> f64 {
    slope * inner + 8.0 * DType::F32.roundoff() * value.abs() + f64::from(f32::MIN_POSITIVE)
}

/// Error of storing a result of size `value`, known to within `inner`, as `dtype`.
#[must_use]
pub fn stored(inner: f64, value: f64, dtype: DType) -> f64 {
    let tiny = match dtype {
        DType::F16 => 2.0f64.powi(-25),
        _ => f64::from(f32::MIN_POSITIVE),
    };
    inner + dtype.roundoff() * (value.abs() + inner) + tiny
}
