// Rows of codes in groups that a thread multiplies on tensor cores: where they lie, with scales and zero points.
//
// CODE, ZERO (whether there are zero points, codes as weights are) and GROUPS (of a step along k) are values of the kernel.
#pragma once
#include "cuda/include/values.cuh"
#include "ops/matmul/weights.cuh"
#include "quant/codes.cuh"

// One row of weights.
struct Row {
    const u8* data;
    const void* scales;
    const u32* zeros; // null without zero points
    i32 field;        // of the row in a word of zero points
};

// Row `row` of the launch.
DEVICE Row row_at(const WeightRows& w, i32 at) {
    const i64 row = w.first + at;
    Row to;
    to.data = static_cast<const u8*>(w.data) + row * w.stride * 4;
    to.scales = static_cast<const u8*>(w.scales) + row * w.scale_stride * scale_size(w.type);
    to.zeros = ZERO ? static_cast<const u32*>(w.zeros) + row / (32 / BITS) * w.zero_stride : nullptr;
    to.field = static_cast<i32>(row);
    return to;
}

// The group of scale `i` of step `step` of `SPAN` columns, where a row has `groups`: past its end the last.
template <i32 SPAN> DEVICE i32 group_of(const WeightRows& w, i32 groups, i32 step, i32 i) {
    return min_of(GROUPS > 1 ? step * GROUPS + i : step * SPAN / w.group, groups - 1);
}
