// A weight matrix of any format, one weight at a time. CODE: see `quant/codes.cuh`.
#pragma once
#include "quant/grouped/element.cuh"

// Rows of one stored tensor: its planes, null where the format has none, and the elements from row to row of each.
struct Weight {
    const void* data;
    const void* scales;
    const void* zeros;
    i64 stride;
    i64 scale_stride;
    i64 zero_stride;
    // Weights along k that share a scale.
    i32 group;
    // ValueType of the floats, or of the scales.
    u32 type;
    f32 factor; // of the scales
    u32 zero;   // ZeroKind
};

DEVICE f32 weight_at(const Weight& w, i32 row, i32 col) {
    return BITS == 0 ? load_value(w.data, w.type, row * w.stride + col) : grouped_element<CODE>(w, row, col);
}
