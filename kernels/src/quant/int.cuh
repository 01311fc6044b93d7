// Integers as codes: what those of 4 and 8 bits share.
//
// As operands of tensor cores eight neighbours along k become four pairs of 16-bit floats, u - z exactly, u the stored field and z its
// zero point or 2^(Bits - 1). A field of b bits in the mantissa of a float whose last bit is 1 is that float plus u; one multiply-add
// takes the float and the zero point off, two weights at a time. f16 has room for 8 bits (1024 + u), and for 4 bits at their place 4 to 7
// too (1024 + 16 u, times 1/16). bf16 has 7 bits: 4 bits fit (128 + u), of 8 the highest becomes an exponent of its own:
// u - 128 = (128 + u % 128) - (u < 128 ? 256 : 128), where 256 and 128 differ in bit 7 alone.
#pragma once
#include "quant/grouped/pairs.cuh"

template <typename T, int Bits> DEVICE PairZero int_pair_zero(u32 z) {
    PairZero v;
    v.high = 0;
    if constexpr (same_type<T, f16>::value) {
        v.low = (0xE400u | z) * 0x10001u;
        if constexpr (Bits == 4) v.high = (0xD400u | z << 4) * 0x10001u;
    } else if constexpr (Bits == 4) {
        v.low = (0xC300u | z) * 0x10001u;
    } else {
        const f32 by = 128.0f - static_cast<f32>(z);
        v.low = pack2<bf16>(by, by);
    }
    return v;
}

// Eight fields from `words` (one of 4 bits, two of 8). Without `Zero` z is 2^(Bits - 1).
template <typename T, int Bits, bool Zero> DEVICE void int_pairs(u32 (&to)[4], const u32* words, const PairZero& zero) {
    constexpr int AND_OR = 0xEA, AND_XOR = 0x6A; // (a & b) | c, (a & b) ^ c
    if constexpr (Bits == 4 && same_type<T, f16>::value) {
        const u32 word = words[0], next = word >> 8;
        to[0] = fma2<f16>(lop3<AND_OR>(word, 0x000f000fu, 0x64006400u), 0x3C003C00u, zero.low);
        to[1] = fma2<f16>(lop3<AND_OR>(word, 0x00f000f0u, 0x64006400u), 0x2C002C00u, zero.high);
        to[2] = fma2<f16>(lop3<AND_OR>(next, 0x000f000fu, 0x64006400u), 0x3C003C00u, zero.low);
        to[3] = fma2<f16>(lop3<AND_OR>(next, 0x00f000f0u, 0x64006400u), 0x2C002C00u, zero.high);
    } else if constexpr (Bits == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            to[i] = fma2<bf16>(lop3<AND_OR>(words[0] >> (4 * i), 0x000f000fu, 0x43004300u), 0x3F803F80u, zero.low);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 bytes = words[i / 2] >> (8 * (i % 2));
            if constexpr (same_type<T, f16>::value) {
                to[i] = fma2<f16>(lop3<AND_OR>(bytes, 0x00ff00ffu, 0x64006400u), 0x3C003C00u, zero.low);
            } else {
                const u32 low = lop3<AND_OR>(bytes, 0x007f007fu, 0x43004300u);
                const u32 high = lop3<AND_XOR>(bytes, 0x00800080u, 0x43804380u);
                to[i] = fma2<bf16>(high, 0xBF80BF80u, low);
                if constexpr (Zero) to[i] = fma2<bf16>(to[i], 0x3F803F80u, zero.low);
            }
        }
    }
}

template <int Bits> struct int_code {
    static constexpr i32 BITS = Bits;
    static constexpr i32 CENTRE = 1 << (Bits - 1);
    static constexpr f32 UNIT = 1.0f;

    static DEVICE f32 value(u32 word, i32 index) { return static_cast<f32>(code_field<Bits>(word, index)); }

    template <typename T> static DEVICE constexpr f32 pair_unit() { return 1.0f; }
    template <typename T> static DEVICE PairZero pair_zero(u32 z) { return int_pair_zero<T, Bits>(z); }
    template <typename T, bool Zero> static DEVICE void pairs(u32 (&to)[4], const u32* words, const PairZero& zero, i32 = 0) {
        int_pairs<T, Bits, Zero>(to, words, zero);
    }
};
