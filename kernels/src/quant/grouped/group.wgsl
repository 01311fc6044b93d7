// Scale and zero point of a group: weights are (u - zero) scale, u the value of the stored field.
//
// CODE, BITS, CENTRE: folder of the code, its bits, and of integers the field that stands for zero, else 0; ZERO: none, codes, float or
// offset, see `Zero`; SCALE: type of the scales; SCALES, ZEROS: bindings. Of the kernel's parameters `p`: `scales, zeros`, the
// first element of each plane; `scale_stride, zero_stride`, elements from row to row; `factor`, of every scale.
//
// FRACTIONS is set where zero points need not be integers.
#include "wgpu/include/input.wgsl" NAME=w_scales BINDING=${SCALES} TYPE=${SCALE} ACCESS=read
#if ZERO == codes
@group(0) @binding(${ZEROS}) var<storage, read> w_zeros: array<u32>;
#elif ZERO != none
#include "wgpu/include/input.wgsl" NAME=w_zeros BINDING=${ZEROS} TYPE=${SCALE} ACCESS=read
#endif
#if ZERO == float || ZERO == offset
#define FRACTIONS 1
#else
#define FRACTIONS 0
#endif
#include "quant/${CODE}/decode.wgsl"

const PER_WORD: u32 = 32u / ${BITS}u;

fn w_group(row: u32, group: u32) -> vec2<f32> {
    let scale = w_scales_at(p.scales + row * p.scale_stride + group) * p.factor;
#if ZERO == codes
    let word = w_zeros[p.zeros + row / PER_WORD * p.zero_stride + group];
    let zero = (word >> (row % PER_WORD * ${BITS}u)) & ((1u << ${BITS}u) - 1u);
    return vec2<f32>(scale, f32(zero));
#elif ZERO == float
    return vec2<f32>(scale, w_zeros_at(p.zeros + row * p.zero_stride + group));
#elif ZERO == offset
    let offset = w_zeros_at(p.zeros + row * p.zero_stride + group);
    // Beside 2^40 every field vanishes.
    let some = select(scale, offset * 9.094947e-13, scale == 0.0);
    return vec2<f32>(some, select(0.0, -offset / some, some != 0.0));
#else
    return vec2<f32>(scale, ${CENTRE}.0);
#endif
}
