// Rows of floats that are read eight at a time.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16 or f16; ACCESS: read for weights, read_write for activations;
// VEC: whether rows begin at multiples of 16 bytes and k is a multiple of eight.
// Gives `NAME_eight_at(first, col)`: elements `first + col ..`, `first` that of a row and `col` a multiple of eight
// below `p.k`; zeros past the end of the row, whatever lies there.
#if VEC
@group(0) @binding(${BINDING}) var<storage, ${ACCESS}> ${NAME}: array<vec4<u32>>;

fn ${NAME}_eight_at(first: u32, col: u32) -> Eight {
#if TYPE == f32
    let at = (first + col) >> 2u;
    return Eight(bitcast<vec4<f32>>(${NAME}[at]), bitcast<vec4<f32>>(${NAME}[at + 1u]));
#else
    let words = ${NAME}[(first + col) >> 3u];
#if TYPE == bf16
    return Eight(
        vec4<f32>(unpack_bf16(words.x), unpack_bf16(words.y)),
        vec4<f32>(unpack_bf16(words.z), unpack_bf16(words.w)),
    );
#else
    return Eight(
        vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4<f32>(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
#endif
#endif
}
#else
#include "wgpu/include/input.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE} ACCESS=${ACCESS}

fn ${NAME}_or_zero(first: u32, col: u32) -> f32 {
    if col < p.k {
        return ${NAME}_at(first + col);
    }
    return 0.0;
}

fn ${NAME}_four(first: u32, col: u32) -> vec4<f32> {
    return vec4<f32>(
        ${NAME}_or_zero(first, col),
        ${NAME}_or_zero(first, col + 1u),
        ${NAME}_or_zero(first, col + 2u),
        ${NAME}_or_zero(first, col + 3u),
    );
}

fn ${NAME}_eight_at(first: u32, col: u32) -> Eight {
    return Eight(${NAME}_four(first, col), ${NAME}_four(first, col + 4u));
}
#endif
