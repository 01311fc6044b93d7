// 8-bit floats (E4M3) as codes of weights.
#pragma once
#include "quant/e4m3/value.cuh"
#include "quant/grouped/pairs.cuh"

// Eight codes in two words as four pairs of T, their exact values: 0 2, 1 3, 4 6, 5 7.
template <typename T> DEVICE void e4m3_pairs(u32 (&to)[4], const u32* words) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const u32 word = i % 2 == 0 ? words[i / 2] << 8 : words[i / 2];
        // The product brings the exponent's bias to that of T; -0 leaves every product as it is.
        if constexpr (same_type<T, f16>::value) {
            to[i] = fma2<f16>(e4m3_halves(word), 0x5C005C00u, 0x80008000u); // 2^8
        } else {
            const u32 pair = (word & 0x80008000u) | (word & 0x7f007f00u) >> 4;
            to[i] = fma2<bf16>(pair, 0x7B807B80u, 0x80008000u); // 2^120
        }
    }
}

struct code_e4m3 {
    static constexpr i32 BITS = 8;
    static constexpr i32 CENTRE = 0;
    static constexpr f32 UNIT = 256.0f; // what `quad` divides by

    static DEVICE f32 value(u32 word, i32 index) { return e4m3_value(static_cast<u32>(code_field<8>(word, index))); }
    static DEVICE f32 unplaced(f32 x, i32) { return x; }

    template <bool Fractions> static DEVICE void quad(f32 (&w)[4], u32 word, i32, f32) {
        const float2 a = unpack2<f16>(e4m3_halves(word << 8)), b = unpack2<f16>(e4m3_halves(word));
        w[0] = a.x, w[1] = b.x, w[2] = a.y, w[3] = b.y;
    }

    template <typename T> static DEVICE constexpr f32 pair_unit() { return 1.0f; }
    template <typename T> static DEVICE PairZero pair_zero(u32) { return PairZero{0, 0}; }
    template <typename T, bool Zero> static DEVICE void pairs(u32 (&to)[4], const u32* words, const PairZero&, i32 = 0) {
        e4m3_pairs<T>(to, words);
    }
};
