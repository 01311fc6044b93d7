//! Conformance cases.

use super::super::{PoolKind, PoolOver};
use super::PoolGrad;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

fn op(
    cx: &mut CaseCx,
    over: PoolOver,
    kind: PoolKind,
    (rows, out, d): (usize, usize, usize),
    gap: usize,
) -> PoolGrad {
    PoolGrad {
        x: (kind == PoolKind::Max).then(|| cx.random_gapped(&[rows, d], F32, Fill::Spiky, gap)),
        over,
        kind,
        d_out: cx.random_gapped(&[out, d], F32, Fill::Normal(1.0), 2 * gap),
        dx: cx.random_gapped(&[rows, d], F32, Fill::Normal(1.0), 3 * gap),
    }
}

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<PoolGrad>> {
    let mut all = Vec::new();
    for kind in [PoolKind::Mean, PoolKind::Max, PoolKind::First, PoolKind::Last] {
        // Boundaries, features, gap: empty segments, rows before, between and after, a whole picture.
        let segments: [(&[i32], usize, usize); 9] = [
            (&[0], 8, 0),
            (&[0, 0], 5, 0),
            (&[0, 4], 0, 0),
            (&[0, 1], 1, 0),
            (&[2, 5, 5, 12], 33, 3),
            (&[0, 7, 13, 14], 64, 0),
            (&[1, 3], 65, 0),
            (&[0, 1024, 1031], 131, 1),
            (&[0, 9, 20], 523, 2),
        ];
        for (starts, d, gap) in segments {
            let rows = starts.last().map_or(0, |&last| last as usize) + usize::from(gap > 0);
            let over = PoolOver::Segments(cx.ints(&[starts.len()], starts));
            let op = op(cx, over, kind, (rows, starts.len() - 1, d), gap);
            all.push(Case { name: format!("{kind:?} over {starts:?}, d {d}, gap {gap}"), op });
        }
        if matches!(kind, PoolKind::First | PoolKind::Last) {
            continue;
        }
        for (images, grid_h, grid_w, block_h, block_w, d, gap) in [
            (0, 4, 4, 2, 2, 8, 0),
            (1, 1, 1, 1, 1, 1, 0),
            (2, 4, 6, 2, 3, 33, 5),
            (3, 5, 3, 5, 1, 17, 0),
            (1, 64, 64, 4, 4, 72, 0),
            (2, 7, 2, 1, 2, 257, 1),
        ] {
            let rows = images * grid_h * grid_w;
            let over = PoolOver::Grid { grid_h, grid_w, block_h, block_w };
            let op = op(cx, over, kind, (rows, rows / (block_h * block_w), d), gap);
            let name = format!("{kind:?} {images}x{grid_h}x{grid_w} by {block_h}x{block_w}, d {d}");
            all.push(Case { name, op });
        }
    }
    // The first of several that are the largest.
    let equal = [3.0, 1.0, 3.0, 2.0, -1.0, 2.0, 3.0, 2.0, -1.0, 0.0, -0.0, -2.0];
    let over = PoolOver::Segments(cx.ints(&[3], &[0, 3, 6]));
    let plain = op(cx, over, PoolKind::Max, (6, 2, 2), 0);
    let x = Some(cx.values(&[6, 2], F32, &equal));
    all.push(Case { name: "equal ones".into(), op: PoolGrad { x, ..plain } });
    all
}
