//! Conformance cases.

use super::GatherRowsGrad;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<GatherRowsGrad>> {
    let mut all = Vec::new();
    // The last but one: many tokens on few rows. The last: the embedding of SmolVLM-256M.
    for (tokens, rows, d, gap, scale) in [
        (0, 4, 8, 0, 1.0),
        (3, 2, 0, 0, 1.0),
        (1, 1, 1, 0, 1.0),
        (7, 5, 33, 3, 1.0),
        (11, 13, 64, 0, -0.75),
        (9, 4, 65, 1, 1.0),
        (64, 97, 257, 0, 1.0),
        (1031, 3, 129, 2, 6.5),
        (37, 49280, 576, 0, 1.0),
    ] {
        let ids: Vec<i32> = (0..tokens).map(|_| cx.below(rows) as i32).collect();
        let op = GatherRowsGrad {
            ids: cx.ints(&[tokens], &ids),
            scale,
            d_out: cx.random_gapped(&[tokens, d], F32, Fill::Spiky, gap),
            d_table: cx.random_gapped(&[rows, d], F32, Fill::Normal(1.0), 2 * gap),
        };
        all.push(Case { name: format!("{tokens} of {rows}x{d} by {scale}, gap {gap}"), op });
    }
    let wide = (
        cx.random(&[6, 50], F32, Fill::Normal(1.0)).narrow(1, 9, 31),
        cx.random(&[8, 60], F32, Fill::Normal(1.0)).narrow(1, 20, 31),
    );
    if let (Ok(d_out), Ok(d_table)) = wide {
        let op = GatherRowsGrad { ids: cx.ints(&[6], &[7, 7, 0, 7, 3, 0]), scale: 1.0, d_out, d_table };
        all.push(Case { name: "windows".into(), op });
    }
    all
}
