// 4-bit floats (E2M1, see `quant/e2m1/mod.rs`).

// The four codes of the lower half of a word, low bits first; there are no zero points.
//
// Exponent and mantissa go where an f32 has them, with the difference of the biases added. The subnormal code 0.5, whose exponent is
// 0, would be 0.75 then, and zero 0.5: twice that less 1 mends both.
fn code_four(half: u32, zero: vec4<f32>) -> vec4<f32> {
    let codes = vec4<u32>(half, half >> 4u, half >> 8u, half >> 12u);
    let magnitude = (codes & vec4<u32>(7u)) << vec4<u32>(22u);
    let normal = bitcast<vec4<f32>>(magnitude + vec4<u32>(0x3f000000u));
    let value = select(normal, normal + normal - vec4<f32>(1.0), magnitude < vec4<u32>(0x800000u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) | ((codes & vec4<u32>(8u)) << vec4<u32>(28u)));
}
