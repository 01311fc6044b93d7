// A tensor that is written, element by element or in pairs, and may be read where it is updated in place.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16, f16 or i32.
// Gives `NAME_set(i, value)`; `NAME_set2(i, values)`: elements `i` and `i + 1`, whole words where `i` is even; `NAME_at(i)`,
// and `NAME_at2(i)`: elements `i` and `i + 1`, `i` even.
// Two invocations may write the halves of one word: 16-bit elements are cleared and set by atomics of their half alone.
#include "wgpu/include/convert.wgsl"
#if TYPE == f32 || TYPE == i32
@group(0) @binding(${BINDING}) var<storage, read_write> ${NAME}: array<u32>;

fn ${NAME}_set(i: u32, value: f32) {
#if TYPE == f32
    ${NAME}[i] = bitcast<u32>(value);
#else
    ${NAME}[i] = bitcast<u32>(i32(value));
#endif
}

fn ${NAME}_set2(i: u32, values: vec2<f32>) {
    ${NAME}_set(i, values.x);
    ${NAME}_set(i + 1u, values.y);
}

fn ${NAME}_at(i: u32) -> f32 {
#if TYPE == f32
    return bitcast<f32>(${NAME}[i]);
#else
    return f32(i32(${NAME}[i]));
#endif
}

fn ${NAME}_at2(i: u32) -> vec2<f32> {
    return vec2<f32>(${NAME}_at(i), ${NAME}_at(i + 1u));
}
#else
@group(0) @binding(${BINDING}) var<storage, read_write> ${NAME}: array<atomic<u32>>;

fn ${NAME}_set(i: u32, value: f32) {
    let shift = (i & 1u) << 4u;
    atomicAnd(&${NAME}[i >> 1u], ~(0xffffu << shift));
    atomicOr(&${NAME}[i >> 1u], ${TYPE}_bits(value) << shift);
}

fn ${NAME}_set2(i: u32, values: vec2<f32>) {
    if (i & 1u) == 0u {
        atomicStore(&${NAME}[i >> 1u], pack_${TYPE}(values));
    } else {
        ${NAME}_set(i, values.x);
        ${NAME}_set(i + 1u, values.y);
    }
}

fn ${NAME}_at(i: u32) -> f32 {
    let bits = (atomicLoad(&${NAME}[i >> 1u]) >> ((i & 1u) << 4u)) & 0xffffu;
#if TYPE == bf16
    return f32_of_bf16(bits);
#else
    return unpack2x16float(bits).x;
#endif
}

fn ${NAME}_at2(i: u32) -> vec2<f32> {
    let word = atomicLoad(&${NAME}[i >> 1u]);
#if TYPE == bf16
    return unpack_bf16(word);
#else
    return unpack2x16float(word);
#endif
}
#endif
