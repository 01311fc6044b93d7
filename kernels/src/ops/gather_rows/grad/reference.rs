//! The gradient in f64, of the rows that have an id.

use super::GatherRowsGrad;
use crate::op::Op;
use crate::ops::sums::expect_rows;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError};

pub(super) fn reference(op: &GatherRowsGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (d_out, d, limit) = (io.read(&op.d_out)?, op.d_out.size(1), op.d_table.size(0));
    let ids = io.ints(&op.ids)?;
    if let Some(&index) = ids.iter().find(|&&id| id < 0 || id as usize >= limit) {
        return Err(KernelError::Index { op: GatherRowsGrad::NAME, what: "id", index, limit });
    }
    let (scale, u) = (f64::from(op.scale), DType::F32.roundoff());
    let error = |term: f64| if op.scale == 1.0 { 0.0 } else { u * term.abs() };
    expect_rows(io, &op.d_table, ids.iter().map(|&id| id as usize), |token, col| {
        let term = scale * d_out[token * d + col];
        (term, error(term))
    })
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::Weights;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{GatherRows, grad_check};

    #[test]
    fn the_gradient_is_that_of_the_forward_op() {
        let mut cx = CaseCx::new(4);
        let table = cx.random(&[5, 3], DType::F32, Fill::Normal(1.0));
        let forward = GatherRows {
            table: Weights::dense(table.clone(), None).unwrap(),
            ids: cx.ints(&[6], &[3, 0, 3, 4, 3, 0]),
            scale: 1.5,
            out: cx.output(&[6, 3], DType::F32),
        };
        let backward = GatherRowsGrad {
            ids: forward.ids.clone(),
            scale: 1.5,
            d_out: cx.random(&[6, 3], DType::F32, Fill::Normal(1.0)),
            d_table: cx.random(&[5, 3], DType::F32, Fill::Normal(1.0)),
        };
        let results = [(&forward.out, &backward.d_out)];
        let operands = [("table", &table, &backward.d_table)];
        assert_eq!(grad_check::check(&cx, &forward, &results, &backward, &operands), Ok(()));
    }
}
