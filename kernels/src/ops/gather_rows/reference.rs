//! Row lookup in f64.

use super::GatherRows;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError};

pub(super) fn reference(op: &GatherRows, io: &mut Oracle) -> Result<(), KernelError> {
    let (table, d, limit) = (io.weights(&op.table)?, op.table.k(), op.table.n());
    let mut values = Vec::with_capacity(op.out.len());
    for index in io.ints(&op.ids)? {
        if index < 0 || index as usize >= limit {
            return Err(KernelError::Index { op: GatherRows::NAME, what: "id", index, limit });
        }
        values.extend(table[index as usize * d..][..d].iter().map(|v| v * f64::from(op.scale)));
    }
    // One rounding for the scale of a quantized row, one for `scale`.
    let errors = values.iter().map(|v: &f64| 3.0 * DType::F32.roundoff() * v.abs()).collect();
    io.expect(&op.out, values, errors);
    Ok(())
}
