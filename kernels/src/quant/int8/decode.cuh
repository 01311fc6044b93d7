// Integers of 8 bits.
#pragma once
#include "quant/int.cuh"

struct code_int8 : int_code<8> {
    static DEVICE f32 unplaced(f32 x, i32) { return x; }

    // The codes of a word: a field goes into the mantissa of 2^23, which leaves with the zero point.
    template <bool Fractions> static DEVICE void quad(f32 (&w)[4], u32 word, i32, f32 zero) {
        constexpr f32 TWO_23 = 8388608.0f;
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const f32 v = __uint_as_float(byte_perm(word, 0x4B000000u, 0x7650 + i));
            w[i] = Fractions ? (v - TWO_23) - zero : v - (TWO_23 + zero);
        }
    }
};
