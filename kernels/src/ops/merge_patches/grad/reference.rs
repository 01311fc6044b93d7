//! The gradient in f64: a permutation.

use super::super::MergeOrder;
use super::MergePatchesGrad;
use crate::ops::sums::{Sum, expect_sums};
use crate::oracle::Oracle;
use crate::spec::KernelError;

pub(super) fn reference(op: &MergePatchesGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let d_out = io.read(&op.d_out)?;
    let (d, factor) = (op.dx.size(1), op.factor);
    let (rows, cols) = (op.grid_h / factor, op.grid_w / factor);
    let mut sums = vec![Sum::default(); op.dx.len()];
    for (patch, features) in sums.chunks_exact_mut(d.max(1)).enumerate() {
        let (image, place) = (patch / (op.grid_h * op.grid_w), patch % (op.grid_h * op.grid_w));
        let (r, c) = (place / op.grid_w, place % op.grid_w);
        let token = (image * rows + r / factor) * cols + c / factor;
        let block = match op.order {
            MergeOrder::RowFirst => r % factor * factor + c % factor,
            MergeOrder::ColumnFirst => c % factor * factor + r % factor,
        };
        let from = &d_out[(token * factor * factor + block) * d..][..d];
        features.iter_mut().zip(from).for_each(|(sum, &term)| sum.add(term, 0.0));
    }
    expect_sums(io, Some(&op.dx), &op.d_out, sums)
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{MergePatches, grad_check};
    use crate::spec::DType::F32;

    #[test]
    fn the_gradient_is_that_of_the_forward_op() {
        let mut cx = CaseCx::new(6);
        for order in [MergeOrder::RowFirst, MergeOrder::ColumnFirst] {
            let (grid_h, grid_w, factor) = (4, 6, 2);
            let x = cx.random(&[48, 2], F32, Fill::Normal(1.0));
            let forward = MergePatches { x, grid_h, grid_w, factor, order, out: cx.output(&[12, 8], F32) };
            let d_out = cx.random(&[12, 8], F32, Fill::Normal(1.0));
            let dx = cx.random(&[48, 2], F32, Fill::Normal(1.0));
            let backward = MergePatchesGrad { grid_h, grid_w, factor, order, d_out, dx };
            let results = [(&forward.out, &backward.d_out)];
            let operands = [("x", &forward.x, &backward.dx)];
            assert_eq!(grad_check::check(&cx, &forward, &results, &backward, &operands), Ok(()));
        }
    }
}
