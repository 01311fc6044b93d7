// A tensor that is read element by element, of any type and alignment, or row group by row group.
//
// NAME: identifier; BINDING: number; TYPE: f32, bf16, f16, i8, u8, i32, e4m3 or e8m0; ACCESS: read for weights, read_write for
// activations, which share one buffer.
// Gives `NAME_at(i)`: element `i` as f32, and `NAME_at2(i)`: elements `i` and `i + 1`, `i` even.
#include "wgpu/include/convert.wgsl"
#if TYPE == e4m3
#include "quant/e4m3/value.wgsl"
#endif
@group(0) @binding(${BINDING}) var<storage, ${ACCESS}> ${NAME}: array<u32>;

fn ${NAME}_at(i: u32) -> f32 {
#if TYPE == f32
    return bitcast<f32>(${NAME}[i]);
#elif TYPE == bf16
    return f32_of_bf16((${NAME}[i >> 1u] >> ((i & 1u) << 4u)) & 0xffffu);
#elif TYPE == f16
    let pair = unpack2x16float(${NAME}[i >> 1u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#elif TYPE == u8
    return f32((${NAME}[i >> 2u] >> ((i & 3u) << 3u)) & 0xffu);
#elif TYPE == i8
    return f32(i32(${NAME}[i >> 2u] << (24u - ((i & 3u) << 3u))) >> 24u);
#elif TYPE == e4m3
    return e4m3_four(${NAME}[i >> 2u] >> ((i & 3u) << 3u)).x;
#elif TYPE == e8m0
    return bitcast<f32>(((${NAME}[i >> 2u] >> ((i & 3u) << 3u)) & 0xffu) << 23u);
#elif TYPE == i32
    return f32(i32(${NAME}[i]));
#endif
}

fn ${NAME}_at2(i: u32) -> vec2<f32> {
#if TYPE == bf16
    return unpack_bf16(${NAME}[i >> 1u]);
#elif TYPE == f16
    return unpack2x16float(${NAME}[i >> 1u]);
#else
    return vec2<f32>(${NAME}_at(i), ${NAME}_at(i + 1u));
#endif
}
