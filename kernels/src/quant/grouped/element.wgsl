// One weight of a matrix of codes in groups: w = (q - zero) * scale, the planes as `Grouped` describes them.
//
// BITS: 4 or 8; FP8: whether codes are floats, of 8 bits; SCALE: type of the scales; ZERO: whether there are zero points.
// Planes at bindings 0, 1 and 2.
// The kernel's parameters hold what `Kernel::weight` gives.
#include "wgpu/include/input.wgsl" NAME=scales BINDING=1 TYPE=${SCALE} ACCESS=read
@group(0) @binding(0) var<storage, read> packed: array<u32>;
#if FP8
#include "quant/e4m3/decode.wgsl"
#endif
#if ZERO
@group(0) @binding(2) var<storage, read> zeros: array<u32>;
#endif

const FIELDS: u32 = 32u / ${BITS}u;
const FIELD_MASK: u32 = (1u << ${BITS}u) - 1u;

// The field of number `index` in the word that holds it, as stored: 2^(BITS - 1) more than its value.
fn field_of(word: u32, index: u32) -> i32 {
    return i32((word >> ((index % FIELDS) * ${BITS}u)) & FIELD_MASK);
}

fn weight_at(row: u32, col: u32) -> f32 {
    let group = col / p.group;
    let word = packed[p.w + row * p.w_stride + col / FIELDS];
    let scale = scales_at(p.scales + row * p.scales_stride + group);
#if FP8
    return e4m3_four(word >> ((col % 4u) * 8u)).x * scale;
#else
#if ZERO
    let zero = field_of(zeros[p.zeros + row / FIELDS * p.zeros_stride + group], row);
#else
    let zero = 1 << (${BITS}u - 1u);
#endif
    return f32(field_of(word, col) - zero) * scale;
#endif
}
