//! The gradients in f64.

use super::ScatterRowsGrad;
use crate::op::Op;
use crate::ops::sums::{Sum, expect_sums};
use crate::oracle::Oracle;
use crate::spec::KernelError;

pub(super) fn reference(op: &ScatterRowsGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (d_out, d, limit) = (io.read(&op.d_out)?, op.d_out.size(1), op.d_out.size(0));
    let rows = io.ints(&op.rows)?;
    let mut sums = vec![Sum::default(); rows.len() * d];
    let mut zeros = Vec::new();
    for (i, &index) in rows.iter().enumerate().filter(|&(_, &row)| row >= 0) {
        if index as usize >= limit {
            return Err(KernelError::Index { op: ScatterRowsGrad::NAME, what: "row", index, limit });
        }
        let from = index as usize * d..(index as usize + 1) * d;
        sums[i * d..].iter_mut().zip(&d_out[from.clone()]).for_each(|(sum, &term)| sum.add(term, 0.0));
        zeros.extend(from);
    }
    zeros.sort_unstable();
    let none = vec![0.0; zeros.len()];
    expect_sums(io, op.d_src.as_ref(), &op.d_out, sums)?;
    io.expect_some(&op.d_out, Some(zeros), none.clone(), none);
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{ScatterRows, grad_check};
    use crate::spec::DType::F32;

    #[test]
    fn gradients_are_those_of_the_forward_op() {
        let mut cx = CaseCx::new(5);
        let forward = ScatterRows {
            src: cx.random(&[4, 3], F32, Fill::Normal(1.0)),
            rows: cx.ints(&[4], &[5, -1, 0, 2]),
            out: cx.random(&[6, 3], F32, Fill::Normal(1.0)),
        };
        let d_src = cx.random(&[4, 3], F32, Fill::Normal(1.0));
        let backward = ScatterRowsGrad {
            rows: forward.rows.clone(),
            d_out: cx.random(&[6, 3], F32, Fill::Normal(1.0)),
            d_src: Some(d_src.clone()),
        };
        let results = [(&forward.out, &backward.d_out)];
        let operands = [("src", &forward.src, &d_src), ("out", &forward.out, &backward.d_out)];
        assert_eq!(grad_check::check(&cx, &forward, &results, &backward, &operands), Ok(()));
    }
}
