//! Conformance cases.

use super::{MergeOrder, MergePatches};
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<MergePatches>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    for order in [MergeOrder::RowFirst, MergeOrder::ColumnFirst] {
        for (x, to) in [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F16, F32), (BF16, F16)] {
            // Pictures, grid, factor, features, gap; the last but one is SmolVLM-256M's connector.
            for (images, grid_h, grid_w, factor, d, gap) in [
                (0, 4, 4, 2, 8, 0),
                (1, 1, 1, 1, 1, 0),
                (2, 2, 6, 2, 33, 5),
                (3, 6, 3, 3, 17, 0),
                (2, 5, 7, 1, 64, 3),
                (1, 4, 4, 4, 0, 0),
                (2, 32, 32, 4, 16, 0),
                (1, 8, 4, 4, 768, 2),
            ] {
                let (rows, block) = (images * grid_h * grid_w, factor * factor);
                let op = MergePatches {
                    x: cx.random_gapped(&[rows, d], x, Fill::Spiky, gap),
                    grid_h,
                    grid_w,
                    factor,
                    order,
                    out: cx.output_gapped(&[rows / block, d * block], to, gap),
                };
                let name = format!("{order:?} {images}x{grid_h}x{grid_w} by {factor}, d {d}, {x} to {to}");
                all.push(Case { name, op });
            }
        }
    }
    all
}
