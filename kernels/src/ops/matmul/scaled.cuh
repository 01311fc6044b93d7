// Scales of products of 8-bit floats: 128 neighbours along k share one of x, and one of each row of weights, see `fp8_x.cu`.
#pragma once
#include "cuda/include/values.cuh"
#include "ops/matmul/weights.cuh"

constexpr i32 SCALE_SPAN = 128;

// That of a launch's row of weights for the columns from `col` on.
DEVICE f32 weight_scale(const WeightRows& w, i32 row, i32 col) {
    return load_value(w.scales, w.type, (w.first + row) * w.scale_stride + col / w.group);
}

// Adds products of rows g and g + 8 with two neighbouring columns, as mma and wgmma leave them in a thread, times their scales.
DEVICE void add_scaled(f32* sum, const f32* part, f32 low, f32 high, float2 cols) {
    sum[0] = fmaf(part[0], low * cols.x, sum[0]);
    sum[1] = fmaf(part[1], low * cols.y, sum[1]);
    sum[2] = fmaf(part[2], high * cols.x, sum[2]);
    sum[3] = fmaf(part[3], high * cols.y, sum[3]);
}
