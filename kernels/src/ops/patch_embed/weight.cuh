// A weight matrix of any format, one weight at a time.
//
// BITS: 0 for floats of type W; else the bits of grouped integers, w = (q - zero) * scale with scales of type W, the planes as
// `Format::IntGroup` describes them.
#pragma once
#include "cuda/include/ptx.cuh"

// Rows of one stored tensor: its planes, null where the format has none, and the elements from row to row of each.
struct Weight {
    const void* data;
    const W* scales;
    const u32* zeros;
    u64 stride;
    u64 scale_stride;
    u64 zero_stride;
    // Weights along k that share a scale.
    u32 group;
    u32 padding;
};

#if BITS
constexpr u32 FIELDS = 32 / BITS;

// The field of number `index` in the word that holds it, as stored: 2^(BITS - 1) more than its value.
DEVICE i32 field_of(u32 word, u32 index) {
    return static_cast<i32>(word >> (index % FIELDS * BITS) & ((1u << BITS) - 1));
}

DEVICE f32 weight_at(const Weight& w, u32 row, u32 col) {
    const u32 group = col / w.group;
    const i32 q = field_of(static_cast<const u32*>(w.data)[row * w.stride + col / FIELDS], col);
    const i32 zero = w.zeros ? field_of(w.zeros[row / FIELDS * w.zero_stride + group], row) : 1 << (BITS - 1);
    return static_cast<f32>(q - zero) * to_f32(w.scales[row * w.scale_stride + group]);
}
#else
DEVICE f32 weight_at(const Weight& w, u32 row, u32 col) {
    return to_f32(static_cast<const W*>(w.data)[row * w.stride + col]);
}
#endif
