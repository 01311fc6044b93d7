//! Row lookup in f64.

use super::GatherRows;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError};

pub(super) fn reference(op: &GatherRows, io: &mut Oracle) -> Result<(), KernelError> {
    let ((table, zeros), d, limit) = (io.weights_and_zeros(&op.table)?, op.table.k(), op.table.n());
    let (mut values, mut errors) = (Vec::with_capacity(op.out.len()), Vec::with_capacity(op.out.len()));
    for index in io.ints(&op.ids)? {
        if index < 0 || index as usize >= limit {
            return Err(KernelError::Index { op: GatherRows::NAME, what: "id", index, limit });
        }
        let row = index as usize * d..(index as usize + 1) * d;
        values.extend(table[row.clone()].iter().map(|v| v * f64::from(op.scale)));
        // One rounding for the scale of a quantized row, one for its factor, one for `scale`; and where a code and what is beside it are
        // added, one of each and of their quotient, which some kernels take for a zero point.
        errors.extend(row.map(|at| {
            let beside = zeros.get(at).map_or(0.0, |zero| 2.0 * zero.abs());
            let size = table[at].abs() + beside;
            4.0 * DType::F32.roundoff() * size * f64::from(op.scale).abs()
        }));
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
