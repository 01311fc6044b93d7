//! Conformance cases.

use super::ScatterRows;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

/// `count` different rows of `tokens` in random order, one in five replaced by a negative one.
pub(super) fn places(cx: &mut CaseCx, count: usize, tokens: usize) -> Vec<i32> {
    let mut all: Vec<i32> = (0..tokens as i32).collect();
    for at in (1..tokens).rev() {
        all.swap(at, cx.below(at + 1));
    }
    all.truncate(count);
    for (at, place) in all.iter_mut().enumerate() {
        if at % 5 == 4 {
            *place = -1 - *place;
        }
    }
    all
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<ScatterRows>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    for x in [F32, BF16, F16] {
        for to in [F32, BF16, F16] {
            for (count, tokens, d, gap) in
                [(0, 3, 8, 0), (1, 1, 1, 0), (4, 9, 33, 3), (7, 7, 64, 0), (64, 97, 576, 0), (5, 6, 0, 0)]
            {
                let rows = places(cx, count, tokens);
                let op = ScatterRows {
                    src: cx.random_gapped(&[count, d], x, Fill::Spiky, gap),
                    rows: cx.ints(&[count], &rows),
                    out: cx.random_gapped(&[tokens, d], to, Fill::Normal(1.0), gap * 2),
                };
                all.push(Case { name: format!("{count} of {tokens}x{d} {x} to {to}, gap {gap}"), op });
            }
        }
    }
    let (wide, onto) =
        (cx.random(&[6, 50], F32, Fill::Normal(1.0)), cx.random(&[8, 60], F32, Fill::Normal(1.0)));
    if let (Ok(src), Ok(out)) = (wide.narrow(1, 9, 31), onto.narrow(1, 20, 31)) {
        let rows = places(cx, 6, 8);
        let op = ScatterRows { src, rows: cx.ints(&[6], &rows), out };
        all.push(Case { name: "windows".into(), op });
    }
    all
}
