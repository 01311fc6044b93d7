//! Sums in f64.

use super::SumSquares;
use crate::oracle::Oracle;
use crate::spec::{KernelError, tolerance};

pub(super) fn reference(op: &SumSquares, io: &mut Oracle) -> Result<(), KernelError> {
    let x = io.read(&op.x)?;
    let values: Vec<f64> =
        x.chunks(SumSquares::BLOCK).map(|block| block.iter().map(|x| x * x).sum()).collect();
    let errors = values.iter().map(|&value| tolerance::dot(SumSquares::BLOCK.min(x.len()), value)).collect();
    io.expect(&op.out, values, errors);
    Ok(())
}
