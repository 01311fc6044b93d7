// Codes in groups as operands of tensor cores: eight neighbours along k become four pairs of 16-bit floats, less their zero point. The
// scale is left to the sums. Pairs are what masks give at once, not neighbours: x has to be in the same order, see `pair_order`.
#pragma once
#include "cuda/include/ptx.cuh"

// The field of number `index` in the word that holds it, as stored.
template <int Bits> DEVICE i32 code_field(u32 word, i32 index) {
    return static_cast<i32>((word >> (index % (32 / Bits) * Bits)) & ((1u << Bits) - 1));
}

// Place among eight neighbours of element `i` of the four pairs: 0 4 1 5 2 6 3 7 of 4 bits, 0 2 1 3 4 6 5 7 of 8 bits.
template <int Bits> DEVICE constexpr int pair_order(int i) {
    return Bits == 4 ? i / 2 + 4 * (i % 2) : i / 4 * 4 + i % 4 / 2 + 2 * (i % 2);
}

// What leaves with the float that an integer was put into, for both of a pair.
struct PairZero {
    u32 low;  // -(128 + z), -(1024 + z); -(z - 128) for 8 bits in bf16
    u32 high; // -(64 + z) of 4 bits in f16
};

// Summand `part` of `Parts` of eight neighbours of x, as pairs in that order; it leaves `v`. Of three bf16 whose sum is x of f32 each
// has 8 bits of its 24, the first two by dropping the rest.
template <typename T, int Bits, int Parts> DEVICE void take_summand(u32 (&words)[4], f32 (&v)[8], i32 part) {
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
        f32& a = v[pair_order<Bits>(2 * i)];
        f32& b = v[pair_order<Bits>(2 * i + 1)];
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
