// A tensor whose heads are read four elements at a time, from any element on.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16, f16, or i8 for codes with a scale behind each head, which begin at multiples of
// four; VEC4: whether all heads begin at multiples of four elements.
// Gives `NAME_row4(first, column)`: elements `4 column .. 4 column + 4` of the head that begins at `first`, zero beyond it.
#if TYPE == i8
@group(0) @binding(${BINDING}) var<storage, read_write> ${NAME}: array<u32>;

fn ${NAME}_row4(first: u32, column: u32) -> vec4<f32> {
    let codes = vec4<i32>(i32(${NAME}[(first >> 2u) + column])) << vec4<u32>(24u, 16u, 8u, 0u);
    return vec4<f32>(codes >> vec4<u32>(24u)) * bitcast<f32>(${NAME}[(first + HEAD_DIM) >> 2u]);
}
#elif VEC4
#include "wgpu/include/input4.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE} ACCESS=read_write

fn ${NAME}_row4(first: u32, column: u32) -> vec4<f32> {
    return ${NAME}_at4(first + 4u * column);
}
#else
#include "wgpu/include/input.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE} ACCESS=read_write

fn ${NAME}_row4(first: u32, column: u32) -> vec4<f32> {
    var x = vec4<f32>(0.0);
    for (var e = 0u; e < 4u; e++) {
        if 4u * column + e < HEAD_DIM {
            x[e] = ${NAME}_at(first + 4u * column + e);
        }
    }
    return x;
}
#endif
