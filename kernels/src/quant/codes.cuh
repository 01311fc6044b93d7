// The code of a kernel's weights, which the value CODE names: `code_` and its folder, `code_none` for floats. A code has
//
//   BITS, CENTRE              its bits; of integers the field that stands for zero where there are no zero points, else 0
//   value(word, index)        the value of the code of that number in its word; of integers the stored field
//   quad<Fractions>(w, word, half, zero)   codes 4 half .. 4 half + 3 of a word less `zero`, divided by UNIT, and times what
//   unplaced(x, k)            divides the x of column k by; Fractions: zero points need not be integers
//   pairs<T, Zero>(to, words, zero, i)     summand i of eight codes, divided by `pair_unit<T>`, as operands of tensor cores of type T, less
//                             `pair_zero`: there is one summand where such floats hold the values of codes, see `Code::halves`
#pragma once
#include "quant/bnb_fp4/decode.cuh"
#include "quant/e2m1/decode.cuh"
#include "quant/e4m3/decode.cuh"
#include "quant/int4/decode.cuh"
#include "quant/int8/decode.cuh"
#include "quant/nf4/decode.cuh"

struct code_none {
    static constexpr i32 BITS = 0;
    static constexpr i32 CENTRE = 0;
    static constexpr f32 UNIT = 1.0f;

    static DEVICE f32 value(u32, i32) { return 0.0f; }
    static DEVICE f32 unplaced(f32 x, i32) { return x; }
    template <bool Fractions> static DEVICE void quad(f32 (&w)[4], u32, i32, f32) { w[0] = w[1] = w[2] = w[3] = 0.0f; }
};

constexpr i32 BITS = CODE::BITS;
