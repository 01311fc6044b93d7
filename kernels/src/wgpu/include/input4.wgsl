// A tensor of floats that is read four elements at a time: rows begin at multiples of four elements.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16 or f16; ACCESS: read for weights, read_write for activations.
// Gives `NAME_at4(i)`: elements `i..i + 4` as f32, `i` a multiple of four.
#include "wgpu/include/convert.wgsl"
#if TYPE == f32
@group(0) @binding(${BINDING}) var<storage, ${ACCESS}> ${NAME}: array<vec4<u32>>;
#else
@group(0) @binding(${BINDING}) var<storage, ${ACCESS}> ${NAME}: array<vec2<u32>>;
#endif

fn ${NAME}_at4(i: u32) -> vec4<f32> {
    let words = ${NAME}[i >> 2u];
#if TYPE == f32
    return bitcast<vec4<f32>>(words);
#elif TYPE == bf16
    return vec4<f32>(unpack_bf16(words.x), unpack_bf16(words.y));
#elif TYPE == f16
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
#endif
}
