//! Conformance cases.

use super::SquaredError;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<SquaredError>> {
    let mut all = Vec::new();
    let sizes =
        [(0, 5), (1, 1), (3, 0), (3, 2), (5, 8), (4, 15), (6, 16), (3, 17), (9, 33), (2, 768), (7, 1031)];
    for (rows, d) in sizes {
        for (fill, gap) in [(Fill::Normal(3.0), 0), (Fill::Spiky, 3), (Fill::Uniform(-2.0, 300.0), 1)] {
            let weights: Vec<f64> = (0..rows).map(|row| [1.0, 0.25, 0.0][row % 3]).collect();
            let op = SquaredError {
                x: cx.random_gapped(&[rows, d], F32, fill, gap),
                target: cx.random_gapped(&[rows, d], F32, fill, 2 * gap),
                weights: (gap > 0).then(|| cx.values(&[rows], F32, &weights)),
                scale: 0.125,
                loss: cx.output(&[rows], F32),
                dx: (gap != 1).then(|| cx.output_gapped(&[rows, d], F32, 2 * gap)),
            };
            all.push(Case { name: format!("{rows}x{d}, {fill:?}, gap {gap}"), op });
        }
    }
    let x = cx.random(&[4, 30], F32, Fill::Normal(2.0));
    let op = SquaredError {
        dx: Some(x.clone()),
        x,
        target: cx.random(&[4, 30], F32, Fill::Normal(2.0)),
        weights: None,
        scale: 1.0,
        loss: cx.output(&[4], F32),
    };
    all.push(Case { name: "in place".into(), op });
    all
}
