//! The gradient in f64.

use super::super::PoolKind;
use super::super::reference::members;
use super::PoolGrad;
use crate::op::Op;
use crate::ops::sums::{Sum, expect_sums};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError};

pub(super) fn reference(op: &PoolGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let x = op.x.as_ref().map_or(Ok(Vec::new()), |x| io.read(x))?;
    let (d_out, rows, d) = (io.read(&op.d_out)?, op.dx.size(0), op.dx.size(1));
    let members = members(&op.over, rows, PoolGrad::NAME, io)?;
    let mut sums = vec![Sum::default(); op.dx.len()];
    for (out, members) in members.iter().enumerate() {
        let Some((&first, &last)) = members.first().zip(members.last()) else { continue };
        for col in 0..d {
            let whole = d_out[out * d + col];
            let one = match op.kind {
                PoolKind::Mean => {
                    let share = whole / members.len() as f64;
                    // The quotient is rounded, and the product with it.
                    let error = 2.0 * DType::F32.roundoff() * share.abs();
                    members.iter().for_each(|&row| sums[row * d + col].add(share, error));
                    continue;
                }
                PoolKind::First => first,
                PoolKind::Last => last,
                PoolKind::Max => members
                    .iter()
                    .copied()
                    .fold(first, |most, row| if x[row * d + col] > x[most * d + col] { row } else { most }),
            };
            sums[one * d + col].add(whole, 0.0);
        }
    }
    expect_sums(io, Some(&op.dx), &op.d_out, sums)
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{Pool, PoolOver, grad_check};
    use crate::spec::DType::F32;

    #[test]
    fn the_gradient_is_that_of_the_forward_op() {
        let mut cx = CaseCx::new(8);
        let (grid_h, grid_w, block_h, block_w) = (4, 3, 2, 3);
        for (kind, segments) in [
            (PoolKind::Mean, true),
            (PoolKind::Max, true),
            (PoolKind::First, true),
            (PoolKind::Last, true),
            (PoolKind::Mean, false),
            (PoolKind::Max, false),
        ] {
            let (over, rows) = if segments {
                (PoolOver::Segments(cx.ints(&[5], &[1, 4, 4, 5, 11])), 4)
            } else {
                (PoolOver::Grid { grid_h, grid_w, block_h, block_w }, 2)
            };
            let x = cx.random(&[12, 3], F32, Fill::Normal(1.0));
            let out = cx.output(&[rows, 3], F32);
            let d_out = cx.random(&[rows, 3], F32, Fill::Normal(1.0));
            let dx = cx.random(&[12, 3], F32, Fill::Normal(1.0));
            let backward = PoolGrad {
                x: (kind == PoolKind::Max).then(|| x.clone()),
                over: over.clone(),
                kind,
                d_out,
                dx,
            };
            let forward = Pool { x, over, kind, out };
            let results = [(&forward.out, &backward.d_out)];
            let operands = [("x", &forward.x, &backward.dx)];
            let checked = grad_check::check(&cx, &forward, &results, &backward, &operands);
            assert_eq!(checked, Ok(()), "{kind:?}, segments: {segments}");
        }
    }
}
