//! Conformance cases.

use super::{ContrastiveKind, ContrastiveLoss};
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<ContrastiveLoss>> {
    let mut all = Vec::new();
    for kind in [ContrastiveKind::Softmax, ContrastiveKind::Sigmoid] {
        for (n, d) in
            [(0, 4), (1, 1), (2, 3), (3, 16), (7, 33), (16, 8), (17, 5), (33, 64), (64, 12), (97, 31)]
        {
            for (fill, scale, bias, gap) in [
                (Fill::Normal(0.3), 1.5, Some(-2.0), 0),
                (Fill::Spiky, -2.0, None, 3),
                (Fill::Uniform(0.4, 0.6), 3.0, Some(-10.0), 1),
            ] {
                let op = ContrastiveLoss {
                    a: cx.random_gapped(&[n, d], F32, fill, gap),
                    b: cx.random_gapped(&[n, d], F32, fill, 2 * gap),
                    scale: cx.values(&[1], F32, &[scale]),
                    bias: bias.map(|bias| cx.values(&[1], F32, &[bias])),
                    kind,
                    loss: cx.output(&[1], F32),
                    da: Some(cx.output_gapped(&[n, d], F32, gap)),
                    db: (gap != 1).then(|| cx.output_gapped(&[n, d], F32, 2 * gap)),
                    d_scale: (gap != 3).then(|| cx.random(&[1], F32, Fill::Normal(1.0))),
                    d_bias: bias.map(|_| cx.random(&[1], F32, Fill::Normal(1.0))),
                };
                all.push(Case { name: format!("{kind:?}, {n}x{d}, {fill:?}, gap {gap}"), op });
            }
        }
        // More pairs than there are logits at once; and the loss alone.
        for (n, d, gradients) in [(1100, 2, true), (50, 20, false)] {
            let op = ContrastiveLoss {
                a: cx.random(&[n, d], F32, Fill::Normal(0.7)),
                b: cx.random(&[n, d], F32, Fill::Normal(0.7)),
                scale: cx.values(&[1], F32, &[0.5]),
                bias: Some(cx.values(&[1], F32, &[-1.0])),
                kind,
                loss: cx.output(&[1], F32),
                da: gradients.then(|| cx.output(&[n, d], F32)),
                db: gradients.then(|| cx.output(&[n, d], F32)),
                d_scale: gradients.then(|| cx.random(&[1], F32, Fill::Normal(1.0))),
                d_bias: gradients.then(|| cx.random(&[1], F32, Fill::Normal(1.0))),
            };
            all.push(Case { name: format!("{kind:?}, {n}x{d}, gradients: {gradients}"), op });
        }
    }
    all
}
