//! Conformance cases.

use super::ActGrad;
use crate::conformance::{Case, CaseCx, Fill};
use crate::ops::Activation;
use crate::spec::DType::F32;

/// Every activation.
pub(super) const ALL: [Activation; 6] = [
    Activation::None,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::QuickGelu,
    Activation::Silu,
    Activation::Relu,
];

fn op(cx: &mut CaseCx, act: Activation, gated: bool, rows: usize, n_out: usize, gap: usize) -> ActGrad {
    let n = if gated { 2 * n_out } else { n_out };
    ActGrad {
        z: cx.random_gapped(&[rows, n], F32, Fill::Spiky, gap),
        act,
        gated,
        d_out: cx.random_gapped(&[rows, n_out], F32, Fill::Normal(1.0), 2 * gap),
        dz: cx.output_gapped(&[rows, n], F32, 3 * gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<ActGrad>> {
    let mut all = Vec::new();
    for act in ALL {
        for gated in [false, true] {
            let form = if gated { "gated" } else { "plain" };
            for (rows, n_out, gap) in [
                (0, 8, 0),
                (3, 0, 0),
                (1, 1, 0),
                (2, 7, 1),
                (5, 8, 0),
                (3, 17, 2),
                (4, 64, 0),
                (7, 513, 3),
                (19, 1536, 0),
            ] {
                let op = op(cx, act, gated, rows, n_out, gap);
                all.push(Case { name: format!("{act:?} {form} {rows}x{n_out}, gap {gap}"), op });
            }
            let op = op(cx, act, gated, 5, 97, 3);
            let op = ActGrad { dz: op.z.clone(), ..op };
            all.push(Case { name: format!("{act:?} {form} in place"), op });
        }
        // From where the slope is 0 to where it is 1, zero of both signs, and the largest numbers.
        let mut values: Vec<f64> = (-600..=600).map(|i| f64::from(i) / 32.0).collect();
        values.extend([-0.0, 1e-38, -1e-38, 1e-42, 50.0, -50.0, 88.0, -88.0, 130.0, -130.0, 1e10, -1e10]);
        values.extend([f64::from(f32::MAX), f64::from(f32::MIN)]);
        let n = values.len();
        let ones = vec![1.0; n];
        let op = ActGrad {
            z: cx.values(&[1, n], F32, &values),
            act,
            gated: false,
            d_out: cx.values(&[1, n], F32, &ones),
            dz: cx.output(&[1, n], F32),
        };
        all.push(Case { name: format!("{act:?} from end to end"), op });
    }
    all
}
