//! Pooling in f64.

use super::{Pool, PoolKind, PoolOver};
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{KernelError, tolerance};

/// The rows of `x`, of which there are `rows`, for each row of the result.
pub(super) fn members(
    over: &PoolOver,
    rows: usize,
    op: &'static str,
    io: &Oracle,
) -> Result<Vec<Vec<usize>>, KernelError> {
    match *over {
        PoolOver::Segments(ref starts) => {
            let starts = io.ints(starts)?;
            let mut members = Vec::new();
            for pair in starts.windows(2) {
                if pair[0] < 0 || pair[1] < pair[0] || pair[1] as usize > rows {
                    let (what, index) = ("segment", pair[1]);
                    return Err(KernelError::Index { op, what, index, limit: rows + 1 });
                }
                members.push((pair[0] as usize..pair[1] as usize).collect());
            }
            Ok(members)
        }
        PoolOver::Grid { grid_h, grid_w, block_h, block_w } => {
            let (down, across) = (grid_h / block_h, grid_w / block_w);
            Ok((0..rows / (block_h * block_w))
                .map(|out| {
                    let (image, place) = (out / (down * across), out % (down * across));
                    let (top, left) = (place / across * block_h, place % across * block_w);
                    (0..block_h * block_w)
                        .map(|i| (image * grid_h + top + i / block_w) * grid_w + left + i % block_w)
                        .collect()
                })
                .collect())
        }
    }
}

pub(super) fn reference(op: &Pool, io: &mut Oracle) -> Result<(), KernelError> {
    let (x, rows, d) = (io.read(&op.x)?, op.x.size(0), op.x.size(1));
    let members = members(&op.over, rows, Pool::NAME, io)?;
    let (mut values, mut errors) = (Vec::with_capacity(op.out.len()), Vec::with_capacity(op.out.len()));
    for member in &members {
        for col in 0..d {
            let column = || member.iter().map(|&row| x[row * d + col]);
            let count = member.len().max(1) as f64;
            let (value, error) = match op.kind {
                PoolKind::Mean => (
                    column().sum::<f64>() / count,
                    tolerance::dot(member.len(), column().map(f64::abs).sum::<f64>() / count),
                ),
                PoolKind::Max => (column().reduce(f64::max).unwrap_or(0.0), 0.0),
                PoolKind::First => (column().next().unwrap_or(0.0), 0.0),
                PoolKind::Last => (column().next_back().unwrap_or(0.0), 0.0),
            };
            values.push(value);
            errors.push(error);
        }
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
