// Rows of codes in groups that a thread multiplies on tensor cores: where they lie, with scales and zero points.
//
// CODE, ZERO (whether there are zero points, codes as weights are), FRACTIONS (whether there are such that are floats, or offsets), GROUPS
// (whose columns a step along k has in one piece) and SIXTEENS (2 where each of those is two groups of 16, else 1) are values of the kernel.
#pragma once
#include "cuda/include/values.cuh"
#include "ops/matmul/weights.cuh"
#include "quant/codes.cuh"

// One row of weights.
struct Row {
    const u8* data;
    const void* scales;
    const void* zeros; // null without zero points
    i32 field;         // of the row in a word of zero points
};

// Row `row` of the launch.
DEVICE Row row_at(const WeightRows& w, i32 at) {
    const i64 row = w.first + at;
    Row to;
    to.data = static_cast<const u8*>(w.data) + row * w.stride * 4;
    to.scales = static_cast<const u8*>(w.scales) + row * w.scale_stride * scale_size(w.type);
    to.zeros = nullptr;
    if constexpr (ZERO) to.zeros = static_cast<const u32*>(w.zeros) + row / (32 / BITS) * w.zero_stride;
    if constexpr (FRACTIONS) to.zeros = static_cast<const u8*>(w.zeros) + row * w.zero_stride * scale_size(w.type);
    to.field = static_cast<i32>(row);
    return to;
}

// The group of scale `i` of step `step` of `SPAN` columns, where a row has `groups`: past its end the last.
template <i32 SPAN> DEVICE i32 group_of(const WeightRows& w, i32 groups, i32 step, i32 i) {
    constexpr i32 ALL = GROUPS * SIXTEENS;
    return min_of(ALL > 1 ? step * ALL + i : step * SPAN / w.group, groups - 1);
}
