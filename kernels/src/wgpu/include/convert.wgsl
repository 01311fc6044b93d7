// Storage types packed into words. Floats of 16 bits are two a word, low half first.

fn f32_of_bf16(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}

// The two bf16 values of a word.
fn unpack_bf16(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Rounded to nearest, ties to even; NaN stays NaN.
fn bf16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn pack_bf16(value: vec2<f32>) -> u32 {
    return bf16_bits(value.x) | (bf16_bits(value.y) << 16u);
}

// Rounded to nearest, ties to even, whatever the rounding of the device's own conversion: the distance to the result of
// the conversion and to its neighbours is exact in f32. Values beyond the largest become infinity.
fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if magnitude >= 0x38800000u {
        let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
        return sign | ((rounded - 0x38000000u) >> 13u);
    }
    // Subnormal: adding 0.5 brings the units to the bottom of the mantissa, and rounds as f32 does.
    return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
}

fn pack_f16(value: vec2<f32>) -> u32 {
    return f16_bits(value.x) | (f16_bits(value.y) << 16u);
}
