//! Row placement in f64.

use super::ScatterRows;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::KernelError;

pub(super) fn reference(op: &ScatterRows, io: &mut Oracle) -> Result<(), KernelError> {
    let (src, d, limit) = (io.read(&op.src)?, op.src.size(1), op.out.size(0));
    let mut order: Vec<(i64, usize)> =
        io.ints(&op.rows)?.into_iter().zip(0..).filter(|&(row, _)| row >= 0).collect();
    order.sort_unstable();
    let (mut indices, mut values) = (Vec::new(), Vec::new());
    for (index, from) in order {
        if index as usize >= limit {
            return Err(KernelError::Index { op: ScatterRows::NAME, what: "row", index, limit });
        }
        indices.extend(index as usize * d..(index as usize + 1) * d);
        values.extend_from_slice(&src[from * d..][..d]);
    }
    let exact = vec![0.0; values.len()];
    io.expect_some(&op.out, Some(indices), values, exact);
    Ok(())
}
