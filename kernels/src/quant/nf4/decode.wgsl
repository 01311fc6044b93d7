// NF4, see `quant/nf4/mod.rs`: a table.
var<private> code_values: array<f32, 16> = array<f32, 16>(
    -1.0, -0.6961928, -0.52507305, -0.3949175,
    -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524,
    0.44070983, 0.562617, 0.72295684, 1.0,
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
