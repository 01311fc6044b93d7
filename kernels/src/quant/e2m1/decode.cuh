// 4-bit floats (E2M1, see `quant/e2m1/mod.rs`).
#pragma once
#include "quant/grouped/pairs.cuh"

struct code_e2m1 {
    static constexpr i32 BITS = 4;
    static constexpr i32 CENTRE = 0;
    static constexpr f32 UNIT = 16384.0f; // what `quad` divides by

    // Codes 0 and 4 of a word as two f16 of 2^-14 times their values: exponent and mantissa move to where an f16 has them, and the
    // biases are 1 and 15.
    static DEVICE u32 halves(u32 word) { return (word & 0x00080008u) << 12 | (word & 0x00070007u) << 9; }

    static DEVICE f32 value(u32 word, i32 index) { return unpack2<f16>(halves(static_cast<u32>(code_field<4>(word, index)))).x * UNIT; }
    static DEVICE f32 unplaced(f32 x, i32) { return x; }

    template <bool Fractions> static DEVICE void quad(f32 (&w)[4], u32 word, i32 half, f32) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const float2 v = unpack2<f16>(halves(word >> (4 * i)));
            w[i] = half == 0 ? v.x : v.y;
        }
    }

    template <typename T> static DEVICE constexpr f32 pair_unit() { return 1.0f; }
    template <typename T> static DEVICE PairZero pair_zero(u32) { return PairZero{0, 0}; }
    template <typename T, bool Zero> static DEVICE void pairs(u32 (&to)[4], const u32* words, const PairZero&, i32 = 0) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const u32 word = words[0] >> (4 * i);
            // The product brings the exponent's bias to that of T; -0 leaves every product as it is.
            if constexpr (same_type<T, f16>::value) {
                to[i] = fma2<f16>(halves(word), 0x74007400u, 0x80008000u); // 2^14
            } else {
                const u32 pair = (word & 0x00080008u) << 12 | (word & 0x00070007u) << 6;
                to[i] = fma2<bf16>(pair, 0x7E807E80u, 0x80008000u); // 2^126
            }
        }
    }
};
