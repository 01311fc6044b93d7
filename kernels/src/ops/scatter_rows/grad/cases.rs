//! Conformance cases.

use super::super::cases::places;
use super::ScatterRowsGrad;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<ScatterRowsGrad>> {
    let mut all = Vec::new();
    for (count, tokens, d, gap) in [
        (0, 3, 8, 0),
        (1, 1, 1, 0),
        (4, 9, 33, 3),
        (7, 7, 64, 0),
        (6, 8, 65, 1),
        (64, 97, 576, 0),
        (5, 6, 0, 0),
    ] {
        for wanted in [true, false] {
            let rows = places(cx, count, tokens);
            let op = ScatterRowsGrad {
                rows: cx.ints(&[count], &rows),
                d_out: cx.random_gapped(&[tokens, d], F32, Fill::Spiky, gap),
                d_src: wanted.then(|| cx.random_gapped(&[count, d], F32, Fill::Normal(1.0), 2 * gap)),
            };
            let what = if wanted { "with" } else { "without" };
            all.push(Case { name: format!("{count} of {tokens}x{d} {what} d_src, gap {gap}"), op });
        }
    }
    let wide = (
        cx.random(&[8, 60], F32, Fill::Normal(1.0)).narrow(1, 20, 31),
        cx.random(&[6, 50], F32, Fill::Normal(1.0)).narrow(1, 9, 31),
    );
    if let (Ok(d_out), Ok(d_src)) = wide {
        let rows = places(cx, 6, 8);
        let op = ScatterRowsGrad { rows: cx.ints(&[6], &rows), d_out, d_src: Some(d_src) };
        all.push(Case { name: "windows".into(), op });
    }
    all
}
