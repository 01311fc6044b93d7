//! Codes in groups that share a scale, as every kind of code has them; see [`Grouped`] for the planes.

pub mod cpu;
mod encode;

pub use encode::{Encoder, Group, Rounder, decode, encode, factor};

use crate::buffer::WeightPart;
use crate::oracle::Oracle;
use crate::spec::{Format, Grouped, KernelError, Zero};

/// The code of number `index` in the 32-bit word that holds it, low bits first.
#[must_use]
pub const fn field(word: i64, index: usize, bits: usize) -> u8 {
    (((word as u32) >> (index % (32 / bits) * bits)) & ((1 << bits) - 1)) as u8
}

/// Appends the rows of one stored tensor, decoded to f64, to `rows`; and to `zeros` the size of what each weight has beside the product of its
/// code, less the centre, and scale: nothing for formats without.
pub(crate) fn decode_f64(
    format: Format,
    grouped: Grouped,
    k: usize,
    part: &WeightPart,
    oracle: &Oracle,
    rows: &mut Vec<f64>,
    zeros: &mut Vec<f64>,
) -> Result<(), KernelError> {
    let Grouped { code, zero, .. } = grouped;
    let bits = code.bits();
    let words = oracle.ints(&part.planes[0])?;
    let scales = oracle.read(&part.planes[1])?;
    // Codes of zero points, or their values.
    let (codes, values) = match zero {
        Zero::None => (Vec::new(), Vec::new()),
        Zero::Codes => (oracle.ints(&part.planes[2])?, Vec::new()),
        Zero::Float | Zero::Offset => (Vec::new(), oracle.read(&part.planes[2])?),
    };
    let centre = f64::from(code.centre().unwrap_or_default());
    let groups = format.groups(k);
    let per_row = part.planes[0].size(1);
    for row in 0..part.rows {
        for col in 0..k {
            let group = col / format.group_len(k);
            let scale = scales[row * groups + group] * f64::from(part.factor);
            let q = f64::from(code.value(field(words[row * per_row + col * bits / 32], col, bits)));
            let beside = match zero {
                Zero::None => 0.0,
                Zero::Codes => {
                    -f64::from(code.value(field(codes[row * bits / 32 * groups + group], row, bits))) * scale
                }
                Zero::Float => (centre - values[row * groups + group]) * scale,
                Zero::Offset => centre * scale + values[row * groups + group],
            };
            // Kernels may round each summand of it.
            match zero {
                Zero::None => {}
                Zero::Codes => zeros.push(beside.abs()),
                Zero::Float => zeros.push((centre + values[row * groups + group].abs()) * scale.abs()),
                Zero::Offset => zeros.push(centre * scale.abs() + values[row * groups + group].abs()),
            }
            rows.push(q * scale + beside);
        }
    }
    Ok(())
}
