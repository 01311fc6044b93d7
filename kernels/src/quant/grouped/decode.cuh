// Codes in groups as operands of tensor cores: eight neighbours along k become four pairs of 16-bit floats: of integers u - z
// exactly, u the stored field and z its zero point or 2^(Bits - 1); of floats their values. The scale is left to the sums.
//
// A field of b bits in the mantissa of a float whose last bit is 1 is that float plus u; one multiply-add takes the float and the
// zero point off, two weights at a time. f16 has room for 8 bits (1024 + u), and for 4 bits at their place 4 to 7 too
// (1024 + 16 u, times 1/16). bf16 has 7 bits: 4 bits fit (128 + u), of 8 the highest becomes an exponent of its own:
// u - 128 = (128 + u % 128) - (u < 128 ? 256 : 128), where 256 and 128 differ in bit 7 alone.
//
// Pairs are what masks give at once, not neighbours. x has to be in the same order, see `int_group_order`.
#pragma once
#include "cuda/include/ptx.cuh"
#include "quant/e4m3/decode.cuh"

// Place among eight neighbours of element `i` of the four pairs: 0 4 1 5 2 6 3 7 of 4 bits, 0 2 1 3 4 6 5 7 of 8 bits.
template <int Bits> DEVICE constexpr int int_group_order(int i) {
    return Bits == 4 ? i / 2 + 4 * (i % 2) : i / 4 * 4 + i % 4 / 2 + 2 * (i % 2);
}

// What leaves with the float that a field was put into, for both of a pair.
struct IntGroupZero {
    u32 low;  // -(128 + z), -(1024 + z); -(z - 128) for 8 bits in bf16
    u32 high; // -(64 + z) of 4 bits in f16
};

template <typename T, int Bits> DEVICE IntGroupZero int_group_zero(u32 z) {
    IntGroupZero v;
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
template <typename T, int Bits, bool Zero> DEVICE void int_group_pairs(u32 (&to)[4], const u32* words, const IntGroupZero& zero) {
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

// Eight codes from `words`, integers or (`Float`) floats.
template <typename T, int Bits, bool Float, bool Zero>
DEVICE void grouped_pairs(u32 (&to)[4], const u32* words, const IntGroupZero& zero) {
    if constexpr (Float) {
        e4m3_pairs<T>(to, words);
    } else {
        int_group_pairs<T, Bits, Zero>(to, words, zero);
    }
}

// Summand `part` of `Parts` of eight neighbours of x, as pairs in that order; it leaves `v`. Of three bf16 whose sum is x of f32 each
// has 8 bits of its 24, the first two by dropping the rest.
template <typename T, int Bits, int Parts> DEVICE void take_summand(u32 (&words)[4], f32 (&v)[8], i32 part) {
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
        f32& a = v[int_group_order<Bits>(2 * i)];
        f32& b = v[int_group_order<Bits>(2 * i + 1)];
        if (part + 1 < Parts) {
            const u32 high_a = __float_as_uint(a) & 0xffff0000u, high_b = __float_as_uint(b) & 0xffff0000u;
            words[i] = high_a >> 16 | high_b;
            a -= __uint_as_float(high_a);
            b -= __uint_as_float(high_b);
        } else {
            words[i] = pack2<T>(a, b);
        }
    }
}
