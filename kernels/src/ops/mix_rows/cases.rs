//! Conformance cases.

use super::MixRows;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;
use crate::{View, Weights};

/// `rows x taps` ids below `count`, one in five negative, and factors.
fn taps(cx: &mut CaseCx, rows: usize, taps: usize, count: usize) -> (View, View) {
    let mut ids: Vec<i32> = (0..rows * taps).map(|_| cx.below(count) as i32).collect();
    ids.iter_mut().skip(3).step_by(5).for_each(|id| *id = -1 - *id);
    let weights = cx.random(&[rows, taps], DType::F32, Fill::Normal(1.0));
    (cx.ints(&[rows, taps], &ids), weights)
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<MixRows>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    for x in [F32, BF16, F16] {
        for to in [F32, BF16, F16] {
            for (rows, per_row, count, d, gap) in [
                (0, 4, 3, 8, 0),
                (1, 1, 1, 1, 0),
                (7, 4, 5, 33, 3),
                (11, 16, 13, 64, 0),
                (5, 2, 9, 577, 1),
                (4, 3, 6, 0, 0),
            ] {
                for add in [false, true] {
                    let (ids, weights) = taps(cx, rows, per_row, count);
                    let op = MixRows {
                        src: cx.random_gapped(&[count, d], x, Fill::Spiky, gap),
                        ids: Some(ids),
                        weights,
                        add,
                        out: cx.random_gapped(&[rows, d], to, Fill::Normal(1.0), gap * 2),
                    };
                    let name = format!("{rows}x{per_row} of {count}x{d} {x} to {to}, gap {gap}, add {add}");
                    all.push(Case { name, op });
                }
            }
        }
    }
    // A window of columns of a wider activation.
    let (wide, onto) =
        (cx.random(&[6, 50], F32, Fill::Normal(1.0)), cx.random(&[8, 60], BF16, Fill::Normal(1.0)));
    if let (Ok(src), Ok(out)) = (wide.narrow(1, 9, 31), onto.narrow(1, 20, 31)) {
        let (ids, weights) = taps(cx, 8, 3, 6);
        all.push(Case {
            name: "windows".into(),
            op: MixRows { src, ids: Some(ids), weights, add: true, out },
        });
    }
    for (rows, taps, d) in [(5, 8, 70), (1, 1, 33), (6, 1, 64)] {
        let op = MixRows {
            src: cx.random(&[rows * taps, d], F32, Fill::Spiky),
            ids: None,
            weights: cx.random(&[rows, taps], F32, Fill::Normal(1.0)),
            add: taps == 1,
            out: cx.random(&[rows, d], BF16, Fill::Normal(1.0)),
        };
        all.push(Case { name: format!("{rows}x{taps} of {d} in order"), op });
    }
    // A stored table of position embeddings: Qwen3-VL's.
    let table = cx.weights(crate::spec::Format::Dense(BF16), 2304, 1152, false);
    if let Some(src) = stored(&table) {
        let (ids, weights) = taps(cx, 40, 4, 2304);
        let out = cx.random(&[40, 1152], F32, Fill::Normal(1.0));
        all.push(Case {
            name: "positions".into(),
            op: MixRows { src, ids: Some(ids), weights, add: true, out },
        });
    }
    all
}

/// The values of a float matrix.
fn stored(weights: &Weights) -> Option<View> {
    weights.parts().first().and_then(|part| part.planes.first()).cloned()
}
