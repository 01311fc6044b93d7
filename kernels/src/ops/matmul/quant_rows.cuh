// Rows of grouped integers that a thread multiplies on tensor cores: where they lie, their scales and zero points.
//
// BITS, ZERO and GROUPS (of a step along k) are values of the kernel.
#pragma once
#include "cuda/include/values.cuh"
#include "ops/matmul/weights.cuh"

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
    to.scales = static_cast<const u8*>(w.scales) + row * w.scale_stride * (w.type == VALUE_F32 ? 4 : 2);
    to.zeros = ZERO ? static_cast<const u32*>(w.zeros) + row / (32 / BITS) * w.zero_stride : nullptr;
    to.field = static_cast<i32>(row);
    return to;
}

// Scales and zero points of a step of one row.
struct Notes {
    f32 scale[GROUPS];
    u32 zero[GROUPS];
};

// Those of step `step` of `SPAN` columns, of `groups` groups in a row.
template <i32 SPAN> DEVICE void load_notes(Notes& to, const Row& row, const WeightRows& w, i32 groups, i32 step) {
#pragma unroll
    for (i32 i = 0; i < GROUPS; ++i) {
        const i32 group = min_of(GROUPS > 1 ? step * GROUPS + i : step * SPAN / w.group, groups - 1);
        to.scale[i] = load_value(row.scales, w.type, group);
        to.zero[i] = 1u << (BITS - 1);
        if constexpr (ZERO) to.zero[i] = static_cast<u32>(int_group_field<BITS>(row.zeros[group], row.field));
    }
}
