//! Weighted sums in f64.

use super::MixRows;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{KernelError, tolerance};

pub(super) fn reference(op: &MixRows, io: &mut Oracle) -> Result<(), KernelError> {
    let (src, weights) = (io.read(&op.src)?, io.read(&op.weights)?);
    let (limit, d, taps) = (op.src.size(0), op.src.size(1), op.weights.size(1));
    let before = if op.add { io.read(&op.out)? } else { vec![0.0; op.out.len()] };
    let ids = match &op.ids {
        Some(ids) => io.ints(ids)?,
        None => (0..weights.len() as i64).collect(),
    };
    if let Some(&index) = ids.iter().find(|&&id| id >= 0 && id as usize >= limit) {
        return Err(KernelError::Index { op: MixRows::NAME, what: "id", index, limit });
    }
    let (mut values, mut errors) = (Vec::with_capacity(before.len()), Vec::with_capacity(before.len()));
    for (i, start) in before.iter().enumerate() {
        let (row, col) = (i / d, i % d);
        let (mut sum, mut magnitude) = (*start, start.abs());
        for tap in row * taps..(row + 1) * taps {
            if ids[tap] >= 0 {
                let product = weights[tap] * src[ids[tap] as usize * d + col];
                sum += product;
                magnitude += product.abs();
            }
        }
        values.push(sum);
        errors.push(tolerance::dot(taps + 1, magnitude));
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
