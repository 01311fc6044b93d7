//! Conformance cases.

use super::DistillLoss;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<DistillLoss>> {
    let mut all = Vec::new();
    let sizes =
        [(0, 5), (1, 1), (3, 2), (5, 8), (4, 15), (6, 16), (3, 17), (9, 33), (2, 512), (7, 1031), (2, 49280)];
    for (rows, classes) in sizes {
        for (at, (fill, gap)) in
            [(Fill::Normal(3.0), 0), (Fill::Spiky, 3), (Fill::Uniform(-300.0, -200.0), 1)]
                .into_iter()
                .enumerate()
        {
            let labels: Vec<i32> =
                (0..rows).map(|row| if row % 4 == 2 { -100 } else { row as i32 }).collect();
            let (shape, add) = ([rows, classes], at == 0);
            let dx = match at {
                0 => Some(cx.random_gapped(&shape, F32, Fill::Normal(0.01), 5)),
                1 => Some(cx.output_gapped(&shape, F32, 2 * gap)),
                _ => None,
            };
            let op = DistillLoss {
                x: cx.random_gapped(&shape, F32, fill, gap),
                teacher: cx.random_gapped(&shape, F32, fill, 2 * gap),
                labels: cx.ints(&[rows], &labels),
                temperature: [2.0, 1.0, 0.7][at],
                scale: 0.125,
                loss: cx.output(&[rows], F32),
                dx,
                add,
            };
            all.push(Case { name: format!("{rows}x{classes}, {fill:?}, gap {gap}, add {add}"), op });
        }
    }
    let (x, labels) = (cx.random(&[2, 30], F32, Fill::Normal(2.0)), cx.ints(&[2], &[0, 0]));
    let teacher: Vec<f64> = (0..60).map(|at| if at % 7 == 3 { 1.5 } else { f64::NEG_INFINITY }).collect();
    let op = DistillLoss {
        x: x.clone(),
        teacher: cx.values(&[2, 30], F32, &teacher),
        labels: labels.clone(),
        temperature: 1.5,
        scale: 1.0,
        loss: cx.output(&[2], F32),
        dx: Some(cx.output(&[2, 30], F32)),
        add: false,
    };
    let (loss, dx) = (cx.output(&[2], F32), Some(cx.output(&[2, 30], F32)));
    let same = DistillLoss { teacher: x, loss, dx, ..op.clone() };
    all.push(Case { name: "classes that are never given".into(), op });
    all.push(Case { name: "a teacher that is the student".into(), op: same });
    all
}
