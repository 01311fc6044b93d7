// 8-bit floats (E4M3, see `quant/e4m3/mod.rs`) as pairs of 16-bit floats. NaN becomes +-480.
#pragma once
#include "cuda/include/ptx.cuh"

// Codes 1 and 3 of a word, each of which becomes an f16 of 2^-8 times its value: exponent and mantissa move to where an f16 has
// them, and the biases are 7 and 15. Codes 0 and 2 are those of the word shifted left by 8.
DEVICE u32 e4m3_halves(u32 word) { return (word & 0x80008000u) | (word & 0x7f007f00u) >> 1; }

// The value of a code.
DEVICE f32 e4m3_value(u32 code) { return unpack2<f16>(e4m3_halves(code << 8)).x * 256.0f; }
