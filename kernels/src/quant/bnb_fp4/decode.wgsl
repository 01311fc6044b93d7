// FP4 as bitsandbytes has it, see `quant/bnb_fp4/mod.rs`: a table.
var<private> code_values: array<f32, 16> = array<f32, 16>(
    0.0, 0.0052083335, 0.6666667, 1.0,
    0.33333334, 0.5, 0.16666667, 0.25,
    0.0, -0.0052083335, -0.6666667, -1.0,
    -0.33333334, -0.5, -0.16666667, -0.25,
);

// The four codes of the lower half of a word, low bits first; there are no zero points.
fn code_four(half: u32, zero: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        code_values[half & 15u],
        code_values[(half >> 4u) & 15u],
        code_values[(half >> 8u) & 15u],
        code_values[(half >> 12u) & 15u],
    );
}
