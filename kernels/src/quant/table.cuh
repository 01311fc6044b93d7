// Codes of 4 bits whose values are a table that 16-bit floats do not hold: what their folders share.
//
// As operands of tensor cores values are sums of 16-bit floats, each the nearest to what those before leave: three bf16 hold all 24 bits of a
// value. Two leave 2^-16 of it, far below the 2^-8 by which x may be off that is rounded to bf16 itself. Two f16 leave 2^-22, if they are no
// small numbers, which the unit of pairs sees to; a sum of k products in f32 may be off by 6 sqrt(k + 4) 2^-24.
#pragma once
#include "quant/grouped/pairs.cuh"

// `Values::at(u32 code)` gives the value of a code.
template <typename Values> struct table_code {
    static constexpr i32 BITS = 4;
    static constexpr i32 CENTRE = 0;
    static constexpr f32 UNIT = 1.0f;

    static DEVICE f32 value(u32 word, i32 index) { return Values::at(static_cast<u32>(code_field<4>(word, index))); }
    static DEVICE f32 unplaced(f32 x, i32) { return x; }

    template <bool Fractions> static DEVICE void quad(f32 (&w)[4], u32 word, i32 half, f32) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) w[i] = value(word, half * 4 + i);
    }

    template <typename T> static DEVICE constexpr f32 pair_unit() { return same_type<T, f16>::value ? 0x1p-10f : 1.0f; }
    template <typename T> static DEVICE PairZero pair_zero(u32) { return PairZero{0, 0}; }
    template <typename T, bool Zero> static DEVICE void pairs(u32 (&to)[4], const u32* words, const PairZero&, i32 summand = 0) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            f32 a = value(words[0], pair_order<4>(2 * i)) * (1.0f / pair_unit<T>());
            f32 b = value(words[0], pair_order<4>(2 * i + 1)) * (1.0f / pair_unit<T>());
            to[i] = pack2<T>(a, b);
#pragma unroll
            for (i32 before = 0; before < summand; ++before) {
                const float2 taken = unpack2<T>(to[i]);
                a -= taken.x, b -= taken.y;
                to[i] = pack2<T>(a, b);
            }
        }
    }
};

// One of eight by selects: a table in memory would be read by each lane in turn.
DEVICE f32 pick8(u32 i, f32 a, f32 b, f32 c, f32 d, f32 e, f32 f, f32 g, f32 h) {
    const f32 ab = i & 1 ? b : a, cd = i & 1 ? d : c, ef = i & 1 ? f : e, gh = i & 1 ? h : g;
    const f32 low = i & 2 ? cd : ab, high = i & 2 ? gh : ef;
    return i & 4 ? high : low;
}
