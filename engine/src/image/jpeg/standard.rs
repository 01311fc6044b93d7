//! The Huffman tables that T.81 gives as examples in annex K.3. Frames of motion JPEG come without tables and mean these.

use std::sync::OnceLock;

use super::bits::Huffman;

const DC_COUNTS: [[u8; 16]; 2] =
    [[0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]];
const DC_VALUES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

const AC_COUNTS: [[u8; 16]; 2] =
    [[0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125], [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119]];

/// The symbols of the shorter codes, up to those of 15 bits; the other symbols follow in rising order.
const AC_SHORT: [&[u8]; 2] = [
    &[
        0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22,
        0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33,
        0x62, 0x72, 0x82,
    ],
    &[
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13,
        0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62,
        0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1,
    ],
];

/// Tables 0 (luminance) and 1 (chrominance).
type Pair = [Option<Huffman>; 2];

/// The tables of DC and AC coefficients.
pub(super) fn tables() -> &'static (Pair, Pair) {
    static TABLES: OnceLock<(Pair, Pair)> = OnceLock::new();
    TABLES.get_or_init(|| {
        let dc = DC_COUNTS.map(|counts| Huffman::new(&counts, &DC_VALUES).ok());
        let ac = [0, 1].map(|i| Huffman::new(&AC_COUNTS[i], &ac_values(AC_SHORT[i])).ok());
        (dc, ac)
    })
}

/// All symbols of an AC table: runs of 0 to 15 with sizes of 1 to 10, end of block, and sixteen zeros.
fn ac_values(short: &[u8]) -> Vec<u8> {
    let rest = (0x01..=0xfa_u8).filter(|v| matches!(v & 15, 1..=10) && !short.contains(v));
    short.iter().copied().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_complete() {
        for i in 0..2 {
            let values = ac_values(AC_SHORT[i]);
            let count: usize = AC_COUNTS[i].iter().map(|&n| usize::from(n)).sum();
            assert_eq!(count, 162);
            assert_eq!(values.len(), count);
            assert!(tables().0[i].is_some() && tables().1[i].is_some());
        }
    }
}
