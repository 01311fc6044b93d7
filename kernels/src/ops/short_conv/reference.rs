//! The convolution in f64.

use super::{ConvForm, ShortConv};
use crate::op::Op;
use crate::ops::Activation;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &ShortConv, io: &mut Oracle) -> Result<(), KernelError> {
    let (taps, channels, slots) = (op.taps(), op.weight.size(1), op.state.size(0));
    let (x, weight, state) = (io.read(&op.x)?, io.read(&op.weight)?, io.read(&op.state)?);
    let bias = op.bias.as_ref().map_or(Ok(vec![0.0; channels]), |bias| io.read(bias))?;
    let (width, (after, input)) = (op.x.size(1), op.columns());
    let gated = op.form == ConvForm::Gated;
    let u = DType::F32.roundoff();
    let (mut values, mut errors) = (vec![0.0; op.out.len()], vec![0.0; op.out.len()]);
    let mut kept = Vec::new();
    for seq in op.seqs.exact(io, ShortConv::NAME, op.x.size(0), slots)? {
        let before = |back: usize, col: usize| {
            seq.old().map_or(0.0, |slot| state[(slot * (taps - 1) + taps - 1 - back) * channels + col])
        };
        // Inputs by the number of their row in the sequence, from `1 - taps` on; a product with a gate is rounded once.
        let at = |row: usize, col: usize| -> (f64, f64) {
            let Some(row) = row.checked_sub(taps - 1) else { return (before(taps - 1 - row, col), 0.0) };
            let of = |first: usize| x[(seq.first + row) * width + first + col];
            let value = if gated { of(0) * of(input) } else { of(input) };
            (value, if gated { u * value.abs() } else { 0.0 })
        };
        for row in 0..seq.rows {
            for col in 0..channels {
                let (mut sum, mut magnitude, mut error) = (bias[col], bias[col].abs(), 0.0);
                for tap in 0..taps {
                    let ((value, own), w) = (at(row + tap, col), weight[tap * channels + col]);
                    sum += w * value;
                    magnitude += (w * value).abs();
                    error += w.abs() * own;
                }
                error += tolerance::dot(taps + 1, magnitude);
                let to = (seq.first + row) * channels + col;
                (values[to], errors[to]) = match op.form {
                    ConvForm::Plain => (sum, error),
                    ConvForm::Silu => Activation::Silu.with_error(sum, error),
                    ConvForm::Gated => {
                        let gate = x[(seq.first + row) * width + after + col];
                        (sum * gate, error * gate.abs() + u * (sum * gate).abs())
                    }
                };
            }
        }
        if let Some(slot) = seq.slot {
            for place in 0..taps - 1 {
                for col in 0..channels {
                    let (value, error) = at(seq.rows + place, col);
                    kept.push(((slot * (taps - 1) + place) * channels + col, value, error));
                }
            }
        }
    }
    kept.sort_unstable_by_key(|(index, ..)| *index);
    let indices = kept.iter().map(|(index, ..)| *index).collect();
    let (states, state_errors) = kept.into_iter().map(|(_, value, error)| (value, error)).unzip();
    io.expect_some(&op.state, Some(indices), states, state_errors);
    io.expect(&op.out, values, errors);
    Ok(())
}
