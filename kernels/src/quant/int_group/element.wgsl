// One weight of a matrix of grouped integers: w = (q - zero) * scale, the planes as `Format::IntGroup` describes them.
//
// BITS: 4 or 8; SCALE: type of the scales; ZERO: whether there are zero points. Planes at bindings 0, 1 and 2.
// The kernel's parameters hold what `Kernel::weight` gives.
#include "wgpu/include/input.wgsl" NAME=scales BINDING=1 TYPE=${SCALE} ACCESS=read
@group(0) @binding(0) var<storage, read> packed: array<u32>;
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
    let q = field_of(packed[p.w + row * p.w_stride + col / FIELDS], col);
#if ZERO
    let zero = field_of(zeros[p.zeros + row / FIELDS * p.zeros_stride + group], row);
#else
    let zero = 1 << (${BITS}u - 1u);
#endif
    return f32(q - zero) * scales_at(p.scales + row * p.scales_stride + group);
}
