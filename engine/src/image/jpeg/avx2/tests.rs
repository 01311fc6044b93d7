use proptest::prelude::*;

use crate::image::jpeg::{idct, output};
use crate::image::may_use_avx2;

/// Blocks of all kinds: whole, of a first row alone, of one value; small values, and any that damaged data may give.
fn blocks() -> impl Strategy<Value = (Vec<i16>, [u16; 64])> {
    let value = prop_oneof![4 => Just(0_i16), 4 => -40..40_i16, 1 => any::<i16>()];
    let block = (prop::collection::vec(value, 64), prop_oneof![Just(1), Just(8), Just(64)]);
    let block = block.prop_map(|(mut values, kept)| {
        values[kept..].fill(0);
        values
    });
    let step = prop_oneof![3 => 1..40_u16, 1 => any::<u16>()];
    (prop::collection::vec(block, 1..6), prop::collection::vec(step, 64))
        .prop_map(|(blocks, steps)| (blocks.concat(), steps.try_into().unwrap()))
}

proptest! {
    #[test]
    fn transforms_are_those_of_the_portable_code((coefs, quant) in blocks()) {
        if may_use_avx2() {
            let (mut expected, mut found) = (vec![0; coefs.len()], vec![0; coefs.len()]);
            idct::portable(&coefs, &quant, &mut expected);
            // SAFETY: the machine has AVX2, as just checked.
            unsafe { super::idct::block_row(&coefs, &quant, &mut found) };
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn chroma_is_doubled_as_by_the_portable_code(rows in prop::collection::vec(any::<[u8; 2]>(), 3..70)) {
        if may_use_avx2() {
            let (near, far): (Vec<u8>, Vec<u8>) = rows.into_iter().map(|[a, b]| (a, b)).unzip();
            let doubled = |sums: fn(&[u8], &[u8], &mut [u16]), row: fn(&mut [u16], [u16; 2], &mut [u8]), bias| {
                let (mut between, mut out) = (vec![0; near.len() + 2], vec![0; 2 * near.len()]);
                sums(&near, &far, &mut between[1..=near.len()]);
                row(&mut between, bias, &mut out);
                out
            };
            prop_assert_eq!(
                doubled(output::weighted::<true>, output::triangle::<true, 4>, [8, 7]),
                doubled(output::weighted::<false>, output::triangle::<false, 4>, [8, 7])
            );
            let plain = |near: &[u8], _: &[u8], sums: &mut [u16]| {
                sums.iter_mut().zip(near).for_each(|(sum, &v)| *sum = v.into());
            };
            prop_assert_eq!(
                doubled(plain, output::triangle::<true, 2>, [1, 2]),
                doubled(plain, output::triangle::<false, 2>, [1, 2])
            );
        }
    }
}

/// Every chroma, in rows of many lengths, at dark, middle and bright levels.
#[test]
fn colours_are_those_of_the_portable_code() {
    if !may_use_avx2() {
        return;
    }
    for (i, cb) in (0..=255_u8).enumerate() {
        let cr: Vec<u8> = (0..=255).cycle().take(224 + i % 64).collect();
        let y: Vec<u8> = (0..cr.len()).map(|x| [0, 3, 90, 128, 200, 255][(x + i) % 6]).collect();
        let cb = vec![cb; cr.len()];
        let (mut expected, mut found) = (vec![0; 3 * cr.len()], vec![0; 3 * cr.len()]);
        output::ycc_row::<false>(&y, &cb, &cr, &mut expected);
        output::ycc_row::<true>(&y, &cb, &cr, &mut found);
        assert_eq!(found, expected, "{}", cb[0]);
    }
}
