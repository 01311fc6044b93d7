// Integers of 4 bits.
#pragma once
#include "quant/int.cuh"

struct code_int4 : int_code<4> {
    // Fields stay at their place p in the word, which multiplies them by 16^p; x is divided by that, exactly.
    static DEVICE constexpr i32 place(i32 field) { return field < 5 ? field : field - 5; }
    static DEVICE f32 unplaced(f32 x, i32 k) { return x * __uint_as_float((127u - 4 * place(k % 8)) << 23); }

    // Codes 4 half .. 4 half + 3 of a word, times 16^p: a field goes into the mantissa of 2^23, which leaves with the zero point.
    template <bool Fractions> static DEVICE void quad(f32 (&w)[4], u32 word, i32 half, f32 zero) {
        constexpr f32 TWO_23 = 8388608.0f;
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const i32 field = half * 4 + i, at = place(field);
            const f32 v = __uint_as_float(lop3<0xEA>(field < 5 ? word : word >> 20, 15u << (4 * at), 0x4B000000u));
            const f32 unit = static_cast<f32>(1 << (4 * at));
            w[i] = Fractions ? (v - TWO_23) - zero * unit : v - fmaf(zero, unit, TWO_23);
        }
    }
};
