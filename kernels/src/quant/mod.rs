//! Storage formats: one folder each, with the encoder and the decoder that the oracle uses, and one small decoder per
//! kernel language. Kernels include decoders; there is no kernel per format.

pub mod e4m3;
pub mod grouped;

use crate::buffer::WeightPart;
use crate::oracle::Oracle;
use crate::spec::{Format, Grouped, KernelError};

/// Appends the rows of one stored tensor, decoded to f64, to `rows`; and to `zeros` what was subtracted for the zero point
/// of each weight, nothing for formats without.
pub(crate) fn decode(
    format: Format,
    k: usize,
    part: &WeightPart,
    oracle: &Oracle,
    rows: &mut Vec<f64>,
    zeros: &mut Vec<f64>,
) -> Result<(), KernelError> {
    match format {
        Format::Dense(_) => rows.extend(oracle.read(&part.planes[0])?),
        Format::Grouped(Grouped { code, .. }) => {
            let bits = code.bits();
            let words = oracle.ints(&part.planes[0])?;
            let scales = oracle.read(&part.planes[1])?;
            let points = part.planes.get(2).map(|plane| oracle.ints(plane)).transpose()?;
            let groups = format.groups(k);
            let per_row = part.planes[0].size(1);
            for row in 0..part.rows {
                for col in 0..k {
                    let group = col / format.group_len(k);
                    let scale = scales[row * groups + group];
                    let mut q = grouped::value(code, words[row * per_row + col * bits / 32], col);
                    if let Some(points) = &points {
                        let zero = grouped::value(code, points[row * bits / 32 * groups + group], row);
                        zeros.push(f64::from(zero) * scale);
                        q -= zero;
                    }
                    rows.push(f64::from(q) * scale);
                }
            }
        }
    }
    Ok(())
}
