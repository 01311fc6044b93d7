//! Conformance cases.

use super::super::MergeOrder;
use super::MergePatchesGrad;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<MergePatchesGrad>> {
    let mut all = Vec::new();
    for order in [MergeOrder::RowFirst, MergeOrder::ColumnFirst] {
        // Pictures, grid, factor, features, gap; the last but one is SmolVLM-256M's connector.
        for (images, grid_h, grid_w, factor, d, gap) in [
            (0, 4, 4, 2, 8, 0),
            (1, 1, 1, 1, 1, 0),
            (2, 2, 6, 2, 33, 5),
            (3, 6, 3, 3, 17, 0),
            (2, 5, 7, 1, 64, 3),
            (1, 4, 4, 4, 0, 0),
            (1, 32, 32, 4, 768, 0),
            (1, 8, 4, 4, 65, 2),
        ] {
            let (rows, block) = (images * grid_h * grid_w, factor * factor);
            let op = MergePatchesGrad {
                grid_h,
                grid_w,
                factor,
                order,
                d_out: cx.random_gapped(&[rows / block, d * block], F32, Fill::Spiky, gap),
                dx: cx.random_gapped(&[rows, d], F32, Fill::Normal(1.0), 2 * gap),
            };
            all.push(Case { name: format!("{order:?} {images}x{grid_h}x{grid_w} by {factor}, d {d}"), op });
        }
    }
    all
}
