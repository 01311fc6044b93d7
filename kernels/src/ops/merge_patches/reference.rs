//! Pixel shuffle in f64: a permutation.

use super::{MergeOrder, MergePatches};
use crate::oracle::Oracle;
use crate::spec::KernelError;

pub(super) fn reference(op: &MergePatches, io: &mut Oracle) -> Result<(), KernelError> {
    let x = io.read(&op.x)?;
    let (d, factor) = (op.x.size(1), op.factor);
    let (rows, cols) = (op.grid_h / factor, op.grid_w / factor);
    let mut values = vec![0.0; x.len()];
    for (patch, features) in x.chunks_exact(d.max(1)).enumerate() {
        let (image, place) = (patch / (op.grid_h * op.grid_w), patch % (op.grid_h * op.grid_w));
        let (r, c) = (place / op.grid_w, place % op.grid_w);
        let token = (image * rows + r / factor) * cols + c / factor;
        let block = match op.order {
            MergeOrder::RowFirst => r % factor * factor + c % factor,
            MergeOrder::ColumnFirst => c % factor * factor + r % factor,
        };
        values[(token * factor * factor + block) * d..][..d].copy_from_slice(features);
    }
    let exact = vec![0.0; values.len()];
    io.expect(&op.out, values, exact);
    Ok(())
}
