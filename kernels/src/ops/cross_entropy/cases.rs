//! Conformance cases.

use super::CrossEntropy;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<CrossEntropy>> {
    let mut all = Vec::new();
    for (rows, classes) in
        [(0, 5), (1, 1), (3, 2), (5, 8), (4, 15), (6, 16), (3, 17), (9, 33), (2, 512), (7, 1031), (3, 49280)]
    {
        for (fill, gap) in [(Fill::Normal(3.0), 0), (Fill::Spiky, 3), (Fill::Uniform(-300.0, -200.0), 1)] {
            let labels: Vec<i32> =
                (0..rows).map(|row| if row % 4 == 2 { -100 } else { cx.below(classes) as i32 }).collect();
            let op = CrossEntropy {
                x: cx.random_gapped(&[rows, classes], F32, fill, gap),
                labels: cx.ints(&[rows], &labels),
                scale: 0.125,
                loss: cx.output(&[rows], F32),
                dx: (gap != 1).then(|| cx.output_gapped(&[rows, classes], F32, 2 * gap)),
            };
            all.push(Case { name: format!("{rows}x{classes}, {fill:?}, gap {gap}"), op });
        }
    }
    let labels = cx.ints(&[4], &[0, 12, -1, 29]);
    let x = cx.random(&[4, 30], F32, Fill::Normal(2.0));
    let op = CrossEntropy { dx: Some(x.clone()), x, labels, scale: 1.0, loss: cx.output(&[4], F32) };
    all.push(Case { name: "in place".into(), op });
    all
}
