// Integers of 4 bits.
//
// Fields become floats without a conversion: a field at bits b .. of a word, put below the exponent of 2^(23 - b), is the float
// 2^(23 - b) + u; taking off 2^(23 - b) + z leaves u - z, exactly where z is an integer. FRACTIONS: it need not be one.

// The four codes of the lower half of a word, low bits first, less `zero`.
fn code_four(half: u32, zero: vec4<f32>) -> vec4<f32> {
    let bits = (vec4<u32>(half) & vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u))
        | vec4<u32>(0x4b000000u, 0x49000000u, 0x47000000u, 0x45000000u);
    let base = vec4<f32>(8388608.0, 524288.0, 32768.0, 2048.0);
#if FRACTIONS
    return (bitcast<vec4<f32>>(bits) - base) - zero;
#else
    return bitcast<vec4<f32>>(bits) - (base + zero);
#endif
}
