// Keys that are split among blocks: each leaves the sums of its part, the last one to come puts them together, in order.
//
// A unit is a tile of rows of a key head of a sequence. The part of a row: its sums of powers times values [head_dim], then the
// largest score and the sum of powers. Blocks of a unit with parts 0 .. parts see the same lengths, so they agree on `parts`.
#pragma once
#include "ops/attention/softmax.cuh"

// Tiles of one part of `tiles`: part i has the tiles i * each .. (i + 1) * each.
DEVICE i32 tiles_of_part(i32 tiles, i32 splits) { return max_of((tiles + splits - 1) / splits, 1); }

// Where part `part` of row `row` of a unit lies, of `rows` rows a unit.
DEVICE f32* partial_row(const Operands& p, i32 unit, i32 part, i32 row, i32 rows) {
    return p.partial + ((static_cast<i64>(unit) * p.splits + part) * rows + row) * (p.head_dim + 2);
}

// Whether this block is the last of the `parts` that come. All threads call it after they have written; `word` is shared.
DEVICE bool comes_last(u32* counter, u32 parts, u32* word) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = atomicAdd(counter, 1u) + 1 == parts;
        // The next launch finds zeros.
        if (last) *counter = 0;
        *word = last;
    }
    __syncthreads();
    __threadfence();
    return *word != 0;
}

// An element of a row's result from its parts.
DEVICE f32 combine_parts(const Operands& p, i32 unit, i32 parts, i32 row, i32 rows, i32 column) {
    const i64 step = static_cast<i64>(rows) * (p.head_dim + 2);
    const f32* const first = partial_row(p, unit, 0, row, rows);
    f32 most = LEAST;
    for (i32 i = 0; i < parts; ++i) most = fmaxf(most, first[i * step + p.head_dim]);
    f32 sum = 0.0f;
    f32 value = 0.0f;
    for (i32 i = 0; i < parts; ++i) {
        const f32* const part = first + i * step;
        const f32 weight = exp2_fast(part[p.head_dim] - most);
        sum = fmaf(weight, part[p.head_dim + 1], sum);
        value = fmaf(weight, part[column], value);
    }
    return sum > 0.0f ? value / sum : 0.0f;
}
