//! Integers whose planes lie along `n`, as files of GPTQ and AWQ have them; see [`KMajor`] for the planes.

pub mod cpu;

use super::grouped::field;
use crate::buffer::WeightPart;
use crate::oracle::Oracle;
use crate::spec::{AWQ_ORDER, Format, Grouped, KMajor, KernelError, ShapeError, Zero};

/// Which field of a word of AWQ's each of 8 neighbours along `n` is.
pub(crate) const AWQ_FIELD: [usize; 8] = inverse(AWQ_ORDER);

const fn inverse(order: [usize; 8]) -> [usize; 8] {
    let mut all = [0; 8];
    let mut at = 0;
    while at < 8 {
        all[order[at]] = at;
        at += 1;
    }
    all
}

/// Where planes of a matrix `[n, k]` have what belongs to a weight.
#[derive(Clone, Copy, Debug)]
struct Places {
    kind: KMajor,
    bits: usize,
    n: usize,
    /// Words of a line of `n` codes.
    words: usize,
}

impl Places {
    fn new(grouped: Grouped, kind: KMajor, n: usize) -> Self {
        let bits = grouped.code.bits();
        Self { kind, bits, n, words: (n * bits).div_ceil(32) }
    }

    /// Word of the packed plane that holds a code, and the field in it.
    fn code(self, row: usize, col: usize) -> (usize, usize) {
        match self.kind {
            KMajor::Awq => (col * self.words + row / 8, AWQ_FIELD[row % 8]),
            _ => (col * self.bits / 32 * self.n + row, col % (32 / self.bits)),
        }
    }

    /// The same of a zero point that is a code.
    fn zero(self, row: usize, group: usize) -> (usize, usize) {
        let word = group * self.words + row * self.bits / 32;
        match self.kind {
            KMajor::Awq => (word, AWQ_FIELD[row % 8]),
            _ => (word, row % (32 / self.bits)),
        }
    }
}

/// As [`grouped::decode_f64`](super::grouped::decode_f64), of planes along `n`.
pub(crate) fn decode_f64(
    format: Format,
    (grouped, kind): (Grouped, KMajor),
    k: usize,
    part: &WeightPart,
    oracle: &Oracle,
    rows: &mut Vec<f64>,
    zeros: &mut Vec<f64>,
) -> Result<(), KernelError> {
    let Grouped { code, zero, .. } = grouped;
    let places = Places::new(grouped, kind, part.rows);
    let (words, scales) = (oracle.ints(&part.planes[0])?, oracle.read(&part.planes[1])?);
    let (codes, values) = match zero {
        Zero::None => (Vec::new(), Vec::new()),
        Zero::Codes => (oracle.ints(&part.planes[2])?, Vec::new()),
        Zero::Float | Zero::Offset => (Vec::new(), oracle.read(&part.planes[2])?),
    };
    let order = match part.planes.last() {
        Some(order) if kind == KMajor::ActOrder => Some(oracle.ints(order)?),
        _ => None,
    };
    let bits = code.bits();
    let value =
        |words: &[i64], (word, at): (usize, usize)| f64::from(code.value(field(words[word], at, bits)));
    let centre = f64::from(code.centre().unwrap_or_default());
    for row in 0..part.rows {
        for col in 0..k {
            let group = match &order {
                Some(order) => order[col] as usize,
                None => col / format.group_len(k),
            };
            let at = group * part.rows + row;
            let scale = scales[at] * f64::from(part.factor);
            let beside = match zero {
                Zero::None => 0.0,
                Zero::Codes => value(&codes, places.zero(row, group)),
                Zero::Float | Zero::Offset => values[at] - centre,
            };
            match zero {
                Zero::None => {}
                // Kernels may take either off apart.
                Zero::Codes => zeros.push((beside * scale).abs()),
                _ => zeros.push((centre + values[at].abs()) * scale.abs()),
            }
            rows.push((value(&words, places.code(row, col)) - beside) * scale);
        }
    }
    Ok(())
}

/// Planes of [`Format::Grouped`] weights `[n, k]` as they lie along `n`, little-endian both. Of act-order, `order` has the group of each
/// column in the file, and columns of the planes given are sorted by it.
///
/// Errors: codes that planes along `n` do not have, sizes that do not fit words, planes of another size.
pub fn turn(
    (grouped, kind): (Grouped, KMajor),
    n: usize,
    k: usize,
    planes: &[&[u8]],
    order: Option<&[usize]>,
) -> Result<Vec<Vec<u8>>, ShapeError> {
    let from = Format::Grouped(grouped);
    let shapes = from.planes(n, k);
    let expected: Vec<usize> = shapes.iter().map(|p| p.rows * p.cols * p.dtype.size()).collect();
    let found: Vec<usize> = planes.iter().map(|plane| plane.len()).collect();
    let bits = grouped.code.bits();
    if !kind.takes(grouped) || expected != found || !(n * bits).is_multiple_of(32) {
        let wanted = format!("integers in whole words along n, planes of {expected:?} bytes");
        return Err(ShapeError::mismatch("planes", wanted, format!("{from}, n {n}, {found:?} bytes")));
    }
    let groups = from.groups(k);
    if order.is_some() != (kind == KMajor::ActOrder)
        || order.is_some_and(|order| order.len() != k || order.iter().any(|&group| group >= groups))
    {
        return Err(ShapeError::new(format!(
            "order: expected a group below {groups} for each of {k} columns"
        )));
    }
    // Places of the sorted columns in the file.
    let mut sorted: Vec<usize> = (0..k).collect();
    if let Some(order) = order {
        sorted.sort_by_key(|&col| order[col]);
    }
    let places = Places::new(grouped, kind, n);
    let word = |plane: &[u8], at: usize| {
        let bytes = &plane[4 * at..];
        i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let to = Format::KMajor(grouped, kind).planes(n, k);
    let mut packed = vec![0u32; to[0].rows * to[0].cols];
    for row in 0..n {
        for (i, &col) in sorted.iter().enumerate() {
            let code = field(word(planes[0], row * shapes[0].cols + i * bits / 32), i, bits);
            let (at, place) = places.code(row, col);
            packed[at] |= u32::from(code) << (place * bits);
        }
    }
    let floats = |plane: &[u8]| {
        let size = grouped.scale.size();
        let at = |group: usize, row: usize| &plane[(row * groups + group) * size..][..size];
        (0..groups).flat_map(|group| (0..n).flat_map(move |row| at(group, row))).copied().collect::<Vec<u8>>()
    };
    let bytes = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let mut all = vec![bytes(packed), floats(planes[1])];
    match grouped.zero {
        Zero::None => {}
        Zero::Codes => {
            let mut zeros = vec![0u32; groups * places.words];
            for row in 0..n {
                for group in 0..groups {
                    let code = field(word(planes[2], row * bits / 32 * groups + group), row, bits);
                    let (at, place) = places.zero(row, group);
                    zeros[at] |= u32::from(code) << (place * bits);
                }
            }
            all.push(bytes(zeros));
        }
        Zero::Float | Zero::Offset => all.push(floats(planes[2])),
    }
    if let Some(order) = order {
        all.push(order.iter().flat_map(|&group| (group as i32).to_le_bytes()).collect());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::grouped;

    #[test]
    fn fields_of_awq_are_those_of_the_order() {
        assert_eq!(AWQ_FIELD, [0, 4, 1, 5, 2, 6, 3, 7]);
    }

    /// Words of AWQ and GPTQ as their libraries pack them: row 1, column 9 of 4 bits.
    #[test]
    fn one_code_lies_where_the_libraries_have_it() {
        let (n, k) = (16, 32);
        let grouped = "int4g32.f16".parse::<Format>().unwrap().grouped().unwrap();
        // The centre is 8: only one code is 15, others 0.
        let values: Vec<f32> = (0..n * k).map(|at| if at == k + 9 { 7.0 } else { -8.0 }).collect();
        let planes = grouped::encode(Format::Grouped(grouped), n, k, &values, 1.0).unwrap();
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let words = |kind, order: Option<&[usize]>| {
            let all = turn((grouped, kind), n, k, &planes, order).unwrap().swap_remove(0);
            let words = all.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            words.enumerate().filter(|(_, word)| *word != 0).collect::<Vec<_>>()
        };
        let top = |of: &[(usize, u32)]| of.iter().map(|&(at, word)| (at, word)).max_by_key(|one| one.1);
        // AWQ: word 0 of line 9, field 4. GPTQ: line 1, word 1, field 1.
        let awq = words(KMajor::Awq, None);
        assert!(awq.iter().any(|&(at, word)| at == 18 && word >> 16 & 15 == 15), "{awq:?}");
        let gptq = words(KMajor::Gptq, None);
        assert!(gptq.iter().any(|&(at, word)| at == 17 && word >> 4 & 15 == 15), "{:?}", top(&gptq));
        assert!(turn((grouped, KMajor::Awq), 12, k, &planes, None).is_err());
        assert!(turn((grouped, KMajor::ActOrder), n, k, &planes, None).is_err());
        assert!(turn((grouped, KMajor::ActOrder), n, k, &planes, Some(&[1; 32])).is_err());
    }
}
