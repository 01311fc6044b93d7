// Scales of groups of codes, and what groups have beside them; see `Grouped`.
#pragma once
#include "cuda/include/values.cuh"
#include "quant/e4m3/value.cuh"

// What groups have beside scales, see `Zero`.
enum ZeroKind : u32 { ZERO_NONE, ZERO_CODES, ZERO_FLOAT, ZERO_OFFSET };

// Bytes of a scale.
DEVICE i64 scale_size(u32 type) { return type == VALUE_F32 ? 4 : type >= VALUE_E4M3 ? 1 : 2; }

// The scale whose bits these are.
DEVICE f32 scale_value(u32 bits, u32 type) {
    if (type == VALUE_F32) return __uint_as_float(bits);
    if (type == VALUE_E4M3) return e4m3_value(bits);
    if (type == VALUE_E8M0) return __uint_as_float(bits << 23);
    return type == VALUE_BF16 ? to_f32(bf16{static_cast<u16>(bits)}) : to_f32(f16{static_cast<u16>(bits)});
}

// The bits of a scale.
DEVICE u32 scale_bits(const void* p, u32 type, i64 at) {
    if (type == VALUE_F32) return static_cast<const u32*>(p)[at];
    return type >= VALUE_E4M3 ? static_cast<const u8*>(p)[at] : static_cast<const u16*>(p)[at];
}
