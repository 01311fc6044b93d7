//! Conformance cases.

use super::{Pool, PoolKind, PoolOver};
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Pool>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    for kind in [PoolKind::Mean, PoolKind::Max, PoolKind::First, PoolKind::Last] {
        for (x, to) in [(F32, F32), (BF16, BF16), (F16, F16), (F32, F16), (BF16, F32)] {
            // Boundaries, features, gap: empty segments, rows before, between and after, a whole picture.
            let segments: [(&[i32], usize, usize); 7] = [
                (&[0], 8, 0),
                (&[0, 0], 5, 0),
                (&[0, 1], 1, 0),
                (&[2, 5, 5, 12], 33, 3),
                (&[0, 7, 13, 14], 64, 0),
                (&[1, 3], 65, 0),
                (&[0, 1024, 1031], 131, 1),
            ];
            for (starts, d, gap) in segments {
                let rows = starts.last().map_or(0, |&last| last as usize) + usize::from(gap > 0);
                let starts_view = cx.ints(&[starts.len()], starts);
                let op = Pool {
                    x: cx.random_gapped(&[rows, d], x, Fill::Spiky, gap),
                    over: PoolOver::Segments(starts_view),
                    kind,
                    out: cx.output_gapped(&[starts.len() - 1, d], to, gap),
                };
                all.push(Case { name: format!("{kind:?} over {starts:?}, d {d}, {x} to {to}"), op });
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
                (2, 7, 2, 1, 2, 129, 1),
            ] {
                let (rows, block) = (images * grid_h * grid_w, block_h * block_w);
                let op = Pool {
                    x: cx.random_gapped(&[rows, d], x, Fill::Spiky, gap),
                    over: PoolOver::Grid { grid_h, grid_w, block_h, block_w },
                    kind,
                    out: cx.output_gapped(&[rows / block, d], to, gap),
                };
                let name =
                    format!("{kind:?} {images}x{grid_h}x{grid_w} by {block_h}x{block_w}, d {d}, {x} to {to}");
                all.push(Case { name, op });
            }
        }
    }
    all
}
