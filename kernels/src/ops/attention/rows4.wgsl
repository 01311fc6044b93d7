// A tensor whose heads are read four elements at a time, from any element on.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16 or f16; VEC4: whether all heads begin at multiples of four elements.
// Gives `NAME_row4(first, column)`: elements `4 column .. 4 column + 4` of the head that begins at `first`, zero beyond it.
#if VEC4
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
