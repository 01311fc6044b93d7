// Logits as integers of the same order.
//
// Minus infinity, the least key of a token, is 0x007fffff; infinity is 0xff800000, NaN the largest; no key is 0.

const LEAST_KEY: u32 = 0x007fffffu;
const INFINITE_KEY: u32 = 0xff800000u;

// One NaN, so that a row with any has it as its largest key; and one zero.
fn key_of(logit: f32) -> u32 {
    var bits = bitcast<u32>(logit);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        bits = 0x7fffffffu;
    }
    if bits == 0x80000000u {
        bits = 0u;
    }
    return bits ^ select(0x80000000u, 0xffffffffu, (bits >> 31u) == 1u);
}

fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(key ^ select(0xffffffffu, 0x80000000u, (key >> 31u) == 1u));
}
