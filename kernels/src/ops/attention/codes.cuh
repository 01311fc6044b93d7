// Keys and values that are codes of 8 bits, as operands of tensor cores in bf16, and their scales.
#pragma once
#include "cuda/include/ptx.cuh"

// Four codes as two pairs of bf16, in their order. A code c in two's complement is u = c + 128 with its highest bit turned: seven bits
// of u fit the mantissa of 128, and c = (128 + u % 128) - (u < 128 ? 256 : 128), where 256 and 128 differ in that bit alone.
DEVICE void open_codes(u32 (&to)[2], u32 codes) {
    constexpr int AND_OR = 0xEA, AND_XOR = 0x6A; // (a & b) | c, (a & b) ^ c
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const u32 bytes = byte_perm(codes, 0, i == 0 ? 0x4140u : 0x4342u);
        const u32 low = lop3<AND_OR>(bytes, 0x007f007fu, 0x43004300u);
        const u32 high = lop3<AND_XOR>(bytes, 0x00800080u, 0x43004300u);
        to[i] = fma2<bf16>(high, 0xBF80BF80u, low);
    }
}

// Multiplies what a thread holds of columns of scores or powers, as mma leaves them, by the scales of these columns.
template <int N> DEVICE void scale_columns(f32 (&s)[N], const f32* scales) {
    const i32 first = lane_id() % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
        const float2 by = *reinterpret_cast<const float2*>(scales + 8 * j + first);
        s[4 * j] *= by.x, s[4 * j + 1] *= by.y, s[4 * j + 2] *= by.x, s[4 * j + 3] *= by.y;
    }
}
