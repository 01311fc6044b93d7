//! Conformance cases.

use super::{AdamW, AdamWStep};
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<AdamW>> {
    let mut all = Vec::new();
    for n in [0, 1, 7, 8, 15, 16, 17, 33, 1000, 16384, 50001] {
        for (step, decay, scale) in [(1, 0.01, 1.0), (50, 0.0, 0.3), (100_000, 0.1, 1.0)] {
            let op = AdamW {
                param: cx.random(&[n], F32, Fill::Spiky),
                grad: cx.random(&[n], F32, Fill::Spiky),
                m: cx.random(&[n], F32, Fill::Normal(0.1)),
                v: cx.random(&[n], F32, Fill::Uniform(0.0, 0.1)),
                step: AdamWStep { scale, ..AdamWStep::new(step, 1e-3, [0.9, 0.999], decay) },
            };
            all.push(Case { name: format!("{n}, step {step}"), op });
        }
    }
    // The first step of a parameter: moments are zero; so are some gradients.
    let grad: Vec<f64> = (0..40).map(|i| f64::from(i % 3) * 1e-6).collect();
    let op = AdamW {
        param: cx.random(&[40], F32, Fill::Normal(1.0)),
        grad: cx.values(&[40], F32, &grad),
        m: cx.values(&[40], F32, &[0.0; 40]),
        v: cx.values(&[40], F32, &[0.0; 40]),
        step: AdamWStep::new(1, 1e-2, [0.9, 0.999], 0.01),
    };
    all.push(Case { name: "from nothing".into(), op });
    all
}
