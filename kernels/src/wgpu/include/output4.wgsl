// A tensor of floats that is written four elements at a time, and may be read where it is updated in place: rows begin at
// multiples of four elements.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16 or f16.
// Gives `NAME_set4(i, values)` and `NAME_at4(i)`: elements `i..i + 4`, `i` a multiple of four.
#include "wgpu/include/input4.wgsl" NAME=${NAME} BINDING=${BINDING} TYPE=${TYPE} ACCESS=read_write

fn ${NAME}_set4(i: u32, values: vec4<f32>) {
#if TYPE == f32
    ${NAME}[i >> 2u] = bitcast<vec4<u32>>(values);
#else
    ${NAME}[i >> 2u] = vec2<u32>(pack_${TYPE}(values.xy), pack_${TYPE}(values.zw));
#endif
}
