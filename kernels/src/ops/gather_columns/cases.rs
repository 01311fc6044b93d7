//! Conformance cases.

use super::GatherColumns;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<GatherColumns>> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, k, n, gap) in [
            (0, 4, 8, 0),
            (1, 1, 1, 0),
            (3, 5, 0, 0),
            (4, 33, 33, 3),
            (7, 64, 31, 0),
            (2, 200, 257, 5),
            (19, 576, 576, 0),
            (1, 1536, 1536, 1),
        ] {
            let columns: Vec<i32> = (0..n).map(|_| cx.below(k) as i32).collect();
            let op = GatherColumns {
                x: cx.random_gapped(&[rows, k], dtype, Fill::Spiky, gap),
                columns: cx.ints(&[n], &columns),
                out: cx.output_gapped(&[rows, n], dtype, 2 * gap),
            };
            all.push(Case { name: format!("{rows}x{k} to {n} {dtype}, gap {gap}"), op });
        }
    }
    all
}
