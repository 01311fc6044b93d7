//! The convolution in f64.

use super::DepthConv;
use crate::oracle::Oracle;
use crate::spec::{KernelError, tolerance};

pub(super) fn reference(op: &DepthConv, io: &mut Oracle) -> Result<(), KernelError> {
    let (channels, wide, multiplier) = (op.x.size(1), op.out.size(1), op.multiplier());
    let (rows, cols) = op.grid;
    let (down, across) = op.places();
    let filter = op.filter;
    let (taps, stride, padding) = (filter.taps(), filter.stride as usize, filter.padding as usize);
    let (x, weight) = (io.read(&op.x)?, io.read(&op.weight)?);
    let bias = op.bias.as_ref().map_or(Ok(vec![0.0; wide]), |bias| io.read(bias))?;
    let (mut values, mut errors) = (vec![0.0; op.out.len()], vec![0.0; op.out.len()]);
    for (place, (values, errors)) in
        values.chunks_exact_mut(wide).zip(errors.chunks_exact_mut(wide)).enumerate()
    {
        let (picture, y, left) =
            (place / (down * across), place / across % down * stride, place % across * stride);
        let in_picture: Vec<(usize, usize)> = (0..taps)
            .filter_map(|tap| {
                let row =
                    (y + tap / filter.size.1 as usize).checked_sub(padding).filter(|row| *row < rows)?;
                let col =
                    (left + tap % filter.size.1 as usize).checked_sub(padding).filter(|col| *col < cols)?;
                Some((tap, (picture * rows + row) * cols + col))
            })
            .collect();
        for (n, (value, error)) in values.iter_mut().zip(errors).enumerate() {
            let (mut sum, mut magnitude) = (bias[n], bias[n].abs());
            for &(tap, at) in &in_picture {
                let product = weight[tap * wide + n] * x[at * channels + n / multiplier];
                sum += product;
                magnitude += product.abs();
            }
            (*value, *error) = (sum, tolerance::dot(taps + 1, magnitude));
        }
    }
    io.expect(&op.out, values, errors);
    Ok(())
}
