// 8-bit floats (E4M3, see `quant/e4m3/mod.rs`), whether codes of weights or scales. NaN becomes +-480.

// The values of four codes.
//
// Exponent and mantissa go where an f32 has them, with the difference of the biases added. A subnormal code, whose exponent is
// 0, would be (1 + m/8) 2^-7 then; it is m/8 2^-6. No f32 on the way is subnormal: devices may take those for zero.
fn e4m3_four(word: u32) -> vec4<f32> {
    let codes = vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u);
    let magnitude = (codes & vec4<u32>(0x7fu)) << vec4<u32>(20u);
    let normal = bitcast<vec4<f32>>(magnitude + vec4<u32>(0x3c000000u));
    let small = normal + normal - vec4<f32>(0.015625);
    let value = select(normal, small, magnitude < vec4<u32>(0x800000u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) | ((codes & vec4<u32>(0x80u)) << vec4<u32>(24u)));
}
