// Integers of 8 bits. Fields become floats as those of 4 bits do, see `quant/int4/decode.wgsl`; one mask serves the lower half of a
// word, a shift by 16 brings the upper half there.

// The four codes of a word, low bits first, less `zero`.
fn code_four(word: u32, zero: vec4<f32>) -> vec4<f32> {
    let bits = (vec4<u32>(word, word, word >> 16u, word >> 16u) & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u))
        | vec4<u32>(0x4b000000u, 0x47000000u, 0x4b000000u, 0x47000000u);
    let base = vec4<f32>(8388608.0, 32768.0, 8388608.0, 32768.0);
#if FRACTIONS
    return (bitcast<vec4<f32>>(bits) - base) - zero;
#else
    return bitcast<vec4<f32>>(bits) - (base + zero);
#endif
}
