// Four neighbouring elements of rows of `p.d`, at columns `col..col + 4`, `col` a multiple of four.
//
// NAME, BINDING, TYPE as in input.wgsl and output.wgsl; ACCESS: read for weights, read_write for activations; WRITTEN:
// whether the tensor is written. VEC: rows begin at multiples of four elements and have a multiple of four.
// Gives `NAME_quad(first, col)`, with `first` the first element of the row: columns beyond the row repeat the last one;
// and `NAME_set_quad(first, col, values)`, which leaves them out.
#if VEC
#if WRITTEN
#include "wgpu/include/output4.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE}
#else
#include "wgpu/include/input4.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE} ACCESS=${ACCESS}
#endif

fn ${NAME}_quad(first: u32, col: u32) -> vec4<f32> {
    return ${NAME}_at4(first + col);
}
#if WRITTEN

fn ${NAME}_set_quad(first: u32, col: u32, values: vec4<f32>) {
    ${NAME}_set4(first + col, values);
}
#endif
#else
#if WRITTEN
#include "wgpu/include/output.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE}
#else
#include "wgpu/include/input.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE} ACCESS=${ACCESS}
#endif

fn ${NAME}_quad(first: u32, col: u32) -> vec4<f32> {
    let last = p.d - 1u;
    return vec4<f32>(
        ${NAME}_at(first + col),
        ${NAME}_at(first + min(col + 1u, last)),
        ${NAME}_at(first + min(col + 2u, last)),
        ${NAME}_at(first + min(col + 3u, last)),
    );
}
#if WRITTEN

fn ${NAME}_set_pair(first: u32, col: u32, values: vec2<f32>) {
    if col + 1u < p.d {
        ${NAME}_set2(first + col, values);
    } else if col < p.d {
        ${NAME}_set(first + col, values.x);
    }
}

fn ${NAME}_set_quad(first: u32, col: u32, values: vec4<f32>) {
    ${NAME}_set_pair(first, col, values.xy);
    ${NAME}_set_pair(first, col + 2u, values.zw);
}
#endif
#endif
