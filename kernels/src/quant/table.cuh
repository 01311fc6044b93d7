// Codes of 4 bits whose values are a table that 16-bit floats do not hold: what their folders share.
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
};

// One of eight by selects: a table in memory would be read by each lane in turn.
DEVICE f32 pick8(u32 i, f32 a, f32 b, f32 c, f32 d, f32 e, f32 f, f32 g, f32 h) {
    const f32 ab = i & 1 ? b : a, cd = i & 1 ? d : c, ef = i & 1 ? f : e, gh = i & 1 ? h : g;
    const f32 low = i & 2 ? cd : ab, high = i & 2 ? gh : ef;
    return i & 4 ? high : low;
}
