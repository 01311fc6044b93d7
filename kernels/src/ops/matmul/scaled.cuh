// Scales of products of 8-bit floats: 128 neighbours along k share one of x, and one of each row of weights, see `fp8_x.cu`.
#pragma once
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/weights.cuh"

constexpr i32 SCALE_SPAN = 128;

// That of a launch's row of weights for the columns from `col` on.
DEVICE f32 weight_scale(const WeightRows& w, i32 row, i32 col) {
    const i64 at = (w.first + row) * w.scale_stride + col / w.group;
    return scale_value(scale_bits(w.scales, w.type, at), w.type) * w.factor;
}

// Adds products of rows g and g + 8 with two neighbouring columns, as mma and wgmma leave them in a thread, times their scales.
DEVICE void add_scaled(f32* sum, const f32* part, f32 low, f32 high, float2 cols) {
    sum[0] = fmaf(part[0], low * cols.x, sum[0]);
    sum[1] = fmaf(part[1], low * cols.y, sum[1]);
    sum[2] = fmaf(part[2], high * cols.x, sum[2]);
    sum[3] = fmaf(part[3], high * cols.y, sum[3]);
}

// Where the scales of a launch lie.
struct ScaleRows {
    WeightRows w;
    WeightRows up; // what the gates `w` scale
    const f32* x;  // [ceil(k / SCALE_SPAN), x_stride]
    i64 x_stride;
};

// Scales of the stages that a warpgroup multiplies, of SCALE_SPAN columns each: a thread fetches those of its two rows of x and of one
// of the N = 128 columns of the tile, a stage ahead, and shows the latter to the others.
template <i32 N, bool Gated> struct StageScales {
    const ScaleRows& rows;
    f32* shared; // [2, N]
    i32 low_row, high_row, col, end;
    bool of_up;
    f32 low = 0.0f, high = 0.0f;
    f32 next_low = 0.0f, next_high = 0.0f, next_col = 0.0f;

    // For 64 rows from `row` on and the tile from `first_col` on; the first stage begins at column `k`, all end before `stop`.
    DEVICE StageScales(const ScaleRows& from, const Epilogue& e, f32* memory, i32 row, i32 first_col, i32 k, i32 stop)
        : rows(from), shared(memory), end(stop) {
        constexpr i32 COLS = Gated ? N / 2 : N;
        const i32 thread = static_cast<i32>(threadIdx.x) % 128;
        row += thread / 32 * 16 + thread % 32 / 4;
        low_row = min_of(row, e.rows - 1), high_row = min_of(row + 8, e.rows - 1);
        col = min_of(first_col + thread % COLS, e.cols - 1);
        of_up = Gated && thread >= COLS;
        fetch(k);
    }
    DEVICE void fetch(i32 k) {
        if (k >= end) return;
        const f32* const of_x = rows.x + k / SCALE_SPAN * rows.x_stride;
        next_low = of_x[low_row], next_high = of_x[high_row];
        next_col = weight_scale(of_up ? rows.up : rows.w, col, k);
    }
    // On to stage `number`, which begins at column `k`; `barrier` is one of the warpgroup.
    DEVICE void next(i32 number, i32 k, u32 barrier) {
        low = next_low, high = next_high;
        shared[number % 2 * N + static_cast<i32>(threadIdx.x) % 128] = next_col;
        barrier_sync(barrier, 128);
        fetch(k + SCALE_SPAN);
    }
    // Adds the sums of that stage.
    DEVICE void add(f32 (&sum)[N / 2], const f32 (&part)[N / 2], i32 number) const {
        const f32* const of_w = shared + number % 2 * N + static_cast<i32>(lane_id()) % 4 * 2;
#pragma unroll
        for (i32 i = 0; i < N / 8; ++i)
            add_scaled(sum + 4 * i, part + 4 * i, low, high, *reinterpret_cast<const float2*>(of_w + 8 * i));
    }
};
