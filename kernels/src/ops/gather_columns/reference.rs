//! Columns in f64.

use super::GatherColumns;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::KernelError;

pub(super) fn reference(op: &GatherColumns, io: &mut Oracle) -> Result<(), KernelError> {
    let (x, columns, limit) = (io.read(&op.x)?, io.ints(&op.columns)?, op.x.size(1));
    let mut values = Vec::with_capacity(op.out.len());
    for row in 0..op.x.size(0) {
        for &index in &columns {
            let Some(column) = usize::try_from(index).ok().filter(|&column| column < limit) else {
                return Err(KernelError::Index { op: GatherColumns::NAME, what: "column", index, limit });
            };
            values.push(x[row * limit + column]);
        }
    }
    let exact = vec![0.0; values.len()];
    io.expect(&op.out, values, exact);
    Ok(())
}
