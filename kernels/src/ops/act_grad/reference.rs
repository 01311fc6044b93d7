//! The gradient in f64.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::ActGrad;
use crate::ops::Activation;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError};

impl Activation {
    /// The derivative in f64; that of [`Relu`](Self::Relu) at 0 is 0.
    #[must_use]
    pub fn derivative(self, x: f64) -> f64 {
        // Of `x sigmoid(t)`, where `t` has the derivative `slope` by x; both are finite for every f32.
        let sigmoid = |t: f64, slope: f64| {
            let e = (-t.abs()).exp();
            let (large, product) = (1.0 / (1.0 + e), e / (1.0 + e).powi(2));
            (if t < 0.0 { e * large } else { large }) + x * product * slope
        };
        match self {
            Self::None => 1.0,
            // (1 + tanh u) / 2 = sigmoid(2 u)
            Self::GeluTanh => {
                let c = 2.0 * (2.0 / PI).sqrt();
                sigmoid(c * (x + 0.044_715 * x.powi(3)), c * (1.0 + 3.0 * 0.044_715 * x * x))
            }
            Self::GeluErf => {
                0.5 * libm::erfc(-x * FRAC_1_SQRT_2) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
            }
            Self::QuickGelu => sigmoid(1.702 * x, 1.702),
            Self::Silu => sigmoid(x, 1.0),
            Self::Relu => f64::from(u8::from(x > 0.0)),
        }
    }
}

/// The derivative with its error, for an argument known to within `inner`.
///
/// It is a sum of `sigmoid(t)` and `x t' e^-|t| / (1 + e^-|t|)^2`, or of two terms alike by `erf` and `e^(-x^2 / 2)`. In f32 `t` is off by 4
/// units of its last place, so that the exponential is off by `4 |t| + 4` relative to itself and the terms by at most 4 and 11 of 2^-24,
/// since `|t| e^-|t|` and `t^2 e^-|t|` are small; the error function is good to 2e-7. No second derivative is above 1.
pub(in crate::ops) fn slope_with_error(act: Activation, x: f64, inner: f64) -> (f64, f64) {
    let value = act.derivative(x);
    match act {
        Activation::None => (value, 0.0),
        Activation::Relu => (value, if x.abs() <= inner && inner > 0.0 { 1.0 } else { 0.0 }),
        _ => (value, inner + 16.0 * DType::F32.roundoff()),
    }
}

pub(super) fn reference(op: &ActGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (z, d_out) = (io.read(&op.z)?, io.read(&op.d_out)?);
    let (n, n_out) = (op.z.size(1), op.d_out.size(1));
    let u = DType::F32.roundoff();
    let (mut values, mut errors) = (vec![0.0; z.len()], vec![0.0; z.len()]);
    for (index, d_out) in d_out.into_iter().enumerate() {
        let at = index / n_out * n + index % n_out;
        let (slope, error) = slope_with_error(op.act, z[at], 0.0);
        let by = if op.gated { z[at + n_out] } else { 1.0 };
        values[at] = d_out * slope * by;
        errors[at] = (d_out * by).abs() * error + 2.0 * u * values[at].abs();
        if op.gated {
            let (value, error) = op.act.with_error(z[at], 0.0);
            values[at + n_out] = d_out * value;
            errors[at + n_out] = d_out.abs() * error + u * (d_out * value).abs();
        }
    }
    io.expect(&op.dz, values, errors);
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::act_grad::cases::ALL;
    use crate::ops::{Matmul, Pointwise, grad_check};

    #[test]
    fn the_gradient_is_that_of_pointwise() {
        let mut cx = CaseCx::new(2);
        for act in ALL {
            let z = cx.random(&[4, 7], DType::F32, Fill::Normal(2.0));
            let forward = Pointwise { act, ..Pointwise::new(z.clone(), cx.output(&[4, 7], DType::F32)) };
            let d_out = cx.random(&[4, 7], DType::F32, Fill::Normal(1.0));
            // Written, and not added to.
            let dz = cx.values(&[4, 7], DType::F32, &[0.0; 28]);
            let backward = ActGrad { z: z.clone(), act, gated: false, d_out: d_out.clone(), dz: dz.clone() };
            let results = [(&forward.out, &d_out)];
            let checked = grad_check::check(&cx, &forward, &results, &backward, &[("z", &z, &dz)]);
            assert_eq!(checked, Ok(()), "{act:?}");
        }
    }

    /// With the unit matrix for weights a product's arguments are its activations.
    #[test]
    fn the_gradient_is_that_of_a_gated_product() {
        let mut cx = CaseCx::new(3);
        let unit: Vec<f64> = (0..36).map(|i| f64::from(u8::from(i % 7 == 0))).collect();
        for act in ALL {
            let z = cx.random(&[4, 6], DType::F32, Fill::Normal(2.0));
            let w = crate::Weights::dense(cx.values(&[6, 6], DType::F32, &unit), None).unwrap();
            let forward =
                Matmul { act, gated: true, ..Matmul::new(z.clone(), w, cx.output(&[4, 3], DType::F32)) };
            let d_out = cx.random(&[4, 3], DType::F32, Fill::Normal(1.0));
            let dz = cx.values(&[4, 6], DType::F32, &[0.0; 24]);
            let backward = ActGrad { z: z.clone(), act, gated: true, d_out: d_out.clone(), dz: dz.clone() };
            let results = [(&forward.out, &d_out)];
            let checked = grad_check::check(&cx, &forward, &results, &backward, &[("z", &z, &dz)]);
            assert_eq!(checked, Ok(()), "{act:?}");
        }
    }
}
