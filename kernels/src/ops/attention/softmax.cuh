// The online softmax on sums of tensor cores.
//
// A thread holds N / 2 scores of each of two rows, h = 0, 1, as mma and wgmma leave them: s[4 j + 2 h + e] is column
// 8 j + 2 (lane % 4) + e, and the four lanes of a quad share the rows. Powers are of two: scores carry a factor of log2 e.
#pragma once
#include "cuda/include/ptx.cuh"
#include "ops/attention/sequence.cuh"

constexpr f32 LOG2_E = 1.44269504f;
// The largest score before any key was seen: finite, so that differences to it are.
constexpr f32 LEAST = -1.0e30f;
// The score of a key that is not seen: its power is 0 whatever was seen before.
DEVICE f32 hidden() { return __uint_as_float(0xff800000u); }

// Powers become operands of the second product in type T. Those of f16 are 2^14 times as large, as the sums of the rows are:
// without, small ones would be subnormal.
template <typename T> constexpr f32 POWER_BIAS = same_type<T, f16>::value ? 14.0f : 0.0f;

// What is known of two rows: their largest score, times the factor, and this thread's part of the sums of powers.
struct RowPair {
    f32 most[2] = {LEAST, LEAST};
    f32 sum[2] = {0.0f, 0.0f};
};

// Products q . k become capped scores, with the factor of log2 e.
template <int N> DEVICE void cap_scores(f32 (&s)[N], f32 scale, f32 cap) {
    const f32 inside = scale / cap;
    const f32 outside = cap * LOG2_E;
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] = outside * tanhf(s[i] * inside);
}

// Hides what the two rows do not see; `key` is that of s[0].
template <int N> DEVICE void hide_scores(f32 (&s)[N], const Seen (&seen)[2], i32 key) {
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (!sees(seen[i / 2 % 2], key + i / 4 * 8 + i % 2)) s[i] = hidden();
}

// Scores become powers 2^(factor s - most + BIAS). `shrink`: what earlier sums of the rows are multiplied by.
template <typename T, int N> DEVICE void softmax_step(f32 (&s)[N], RowPair& rows, f32 (&shrink)[2], f32 factor) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        f32 most = fmaxf(s[2 * h], s[2 * h + 1]);
#pragma unroll
        for (int j = 1; j < N / 4; ++j) most = fmaxf(most, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        most = fmaxf(rows.most[h], warp_max<4>(most) * factor);
        shrink[h] = exp2_fast(rows.most[h] - most);
        rows.most[h] = most;
        const f32 offset = POWER_BIAS<T> - most;
        f32 sum = 0.0f;
#pragma unroll
        for (int j = 0; j < N / 4; ++j) {
            f32& a = s[4 * j + 2 * h];
            f32& b = s[4 * j + 2 * h + 1];
            a = exp2_fast(fmaf(a, factor, offset));
            b = exp2_fast(fmaf(b, factor, offset));
            sum += a + b;
        }
        rows.sum[h] = fmaf(rows.sum[h], shrink[h], sum);
    }
}

// Powers as the left operand of the second product: word 4 i + r is register r of its columns 16 i .. 16 i + 16.
template <typename T, int N> DEVICE void pack_powers(u32 (&p)[N / 2], const f32 (&s)[N]) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) p[i] = pack2<T>(s[2 * i], s[2 * i + 1]);
}

// Multiplies sums of the two rows.
template <int N> DEVICE void scale_rows(f32 (&o)[N], const f32 (&by)[2]) {
#pragma unroll
    for (int i = 0; i < N; ++i) o[i] *= by[i / 2 % 2];
}

// 1 / the sums of powers of the two rows; 0 for rows that saw no key.
DEVICE void finish_rows(const RowPair& rows, f32 (&inverse)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const f32 sum = warp_sum<4>(rows.sum[h]);
        inverse[h] = sum > 0.0f ? 1.0f / sum : 0.0f;
    }
}

// Writes the two columns that a thread has of each 8, for one row: `to` is the row's first element, `even` whether it is 4-byte
// aligned.
template <typename T, i32 WIDTH, int N>
DEVICE void store_row(T* to, const f32 (&o)[N], int h, f32 factor, bool even) {
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
        const i32 column = 8 * j + 2 * (lane_id() % 4);
        const f32 a = o[4 * j + 2 * h] * factor;
        const f32 b = o[4 * j + 2 * h + 1] * factor;
        if (even && column + 1 < WIDTH) {
            *reinterpret_cast<u32*>(to + column) = pack2<T>(a, b);
        } else {
            if (column < WIDTH) to[column] = from_f32<T>(a);
            if (column + 1 < WIDTH) to[column + 1] = from_f32<T>(b);
        }
    }
}
