// 8-bit floats (E4M3, see `quant/e4m3/mod.rs`) as pairs of 16-bit floats. NaN becomes +-480.
#pragma once
#include "cuda/include/ptx.cuh"

// Codes 1 and 3 of a word, each of which becomes an f16 of 2^-8 times its value: exponent and mantissa move to where an f16 has
// them, and the biases are 7 and 15. Codes 0 and 2 are those of the word shifted left by 8.
DEVICE u32 e4m3_halves(u32 word) { return (word & 0x80008000u) | (word & 0x7f007f00u) >> 1; }

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
