// s = x + add
// RMS:    out = s / sqrt(mean(s^2) + eps) * (weight_offset + weight)
// LAYER:  out = (s - mean(s)) / sqrt(var(s) + eps) * (weight_offset + weight) + bias
//
// x, add, sum: [rows, d] of type X   weight: [d] of type WEIGHT   bias: [d] of type BIAS   out: [rows, d] of type OUT
// add, sum, weight, bias may be null. sum and out may be the very elements of x or add.
//
// A team of TEAM threads normalizes one row: a warp for short rows, which need no barrier then, a block for long ones. A
// thread takes every TEAM-th vector of VEC neighbouring elements: VEC = 8 where all rows begin at 16 bytes and d is a multiple
// of 8, with loads and stores of 16 bytes; else VEC = 1. KEEP vectors stay in a thread's registers, so that a row is read
// once, two of x and of add on their way at a time; KEEP = 0 is for rows that are too long for that, or not aligned: each pass reads them
// again. The variance is a pass
// of its own about the mean, so that nothing cancels. A thread writes what it alone has read, after its last read.
//
// The kernel is a dependent launch: weight and bias, which no launch writes, come while the launch before still runs.
#include "cuda/include/reduce.cuh"
#include "cuda/include/vec.cuh"

struct Params {
    const X* x;
    const X* add;
    const WEIGHT* weight;
    const BIAS* bias;
    X* sum;
    OUT* out;
    u64 x_stride;
    u64 add_stride;
    u64 sum_stride;
    u64 out_stride;
    u32 rows;
    u32 d;
    // 1 / d.
    f32 share;
    f32 weight_offset;
    f32 eps;
    u32 padding;
};

constexpr u32 STEP = TEAM * VEC;
// A zero-sized array does not exist.
constexpr int KEPT = KEEP > 0 ? KEEP : 1;

// Sum over the team, for each of its threads.
DEVICE f32 total(f32 value, f32* parts) {
    if constexpr (TEAM == 32) return warp_sum(value);
    return block_sum<THREADS>(value, parts);
}

// Sum of (s - mean)^2, or of s where LINEAR, in a fixed order.
template <bool LINEAR> DEVICE f32 gather(const f32 (&s)[VEC], f32 mean) {
    f32 part = 0.0f;
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const f32 centred = s[i] - mean;
        part = LINEAR ? part + s[i] : fmaf(centred, centred, part);
    }
    return part;
}

// Scale and shift of the columns from `col` on.
struct Affine {
    f32 scale[VEC];
    f32 shift[VEC];

    DEVICE void load(const Params& p, u32 col) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) scale[i] = 1.0f, shift[i] = 0.0f;
        if (p.weight) {
            load_vec(scale, p.weight + col);
#pragma unroll
            for (int i = 0; i < VEC; ++i) scale[i] += p.weight_offset;
        }
        if (p.bias) load_vec(shift, p.bias + col);
    }
};

struct Row {
    const X* x;
    const X* add;
    X* sum;
    OUT* out;

    // x + add at the columns from `col` on.
    DEVICE void load(f32 (&s)[VEC], u32 col) const {
        load_vec(s, x + col);
        if (add) {
            f32 more[VEC];
            load_vec(more, add + col);
#pragma unroll
            for (int i = 0; i < VEC; ++i) s[i] += more[i];
        }
    }

    // As above for the vectors of a thread from column `first` on, those that there are of `d` columns.
    DEVICE void load_all(f32 (&s)[KEPT][VEC], u32 first, u32 d) const {
        constexpr int AT_ONCE = 2;
#pragma unroll
        for (int begin = 0; begin < KEEP; begin += AT_ONCE) {
            Fetched<X, VEC> own[AT_ONCE] = {}, more[AT_ONCE] = {};
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const u32 col = first + (begin + i) * STEP;
                if (begin + i < KEEP && col < d) {
                    own[i].fetch(x + col);
                    if (add) more[i].fetch(add + col);
                }
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE && begin + i < KEEP; ++i) {
                f32 other[VEC];
                own[i].open(s[begin + i]);
                more[i].open(other);
#pragma unroll
                for (int j = 0; j < VEC; ++j) s[begin + i][j] = add ? s[begin + i][j] + other[j] : s[begin + i][j];
            }
        }
    }

    DEVICE void store(const f32 (&s)[VEC], u32 col, f32 mean, f32 scale, const Affine& affine) const {
        if (sum) store_vec(sum + col, s);
        f32 value[VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i) value[i] = fmaf((s[i] - mean) * scale, affine.scale[i], affine.shift[i]);
        store_vec(out + col, value);
    }
};

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* parts = reinterpret_cast<f32*>(smem);
    const u32 row = blockIdx.x * (THREADS / TEAM) + threadIdx.x / TEAM;
    const u32 first = threadIdx.x % TEAM * VEC;

    Affine affine[KEPT];
#pragma unroll
    for (int i = 0; i < KEEP; ++i) {
        if (first + i * STEP < p.d) affine[i].load(p, first + i * STEP);
    }
    grid_wait();
    if (row >= p.rows) return;
    const Row r = {
        p.x + row * p.x_stride,
        p.add ? p.add + row * p.add_stride : nullptr,
        p.sum ? p.sum + row * p.sum_stride : nullptr,
        p.out + row * p.out_stride,
    };

    f32 kept[KEPT][VEC];
    f32 mean = 0.0f;
    f32 part = 0.0f;
    if constexpr (KEEP > 0) {
        r.load_all(kept, first, p.d);
        if constexpr (LAYER) {
#pragma unroll
            for (int i = 0; i < KEEP; ++i) {
                if (first + i * STEP < p.d) part += gather<true>(kept[i], 0.0f);
            }
            mean = total(part, parts) * p.share;
            part = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < KEEP; ++i) {
            if (first + i * STEP < p.d) part += gather<false>(kept[i], mean);
        }
    } else {
        if constexpr (LAYER) {
            for (u32 col = first; col < p.d; col += STEP) {
                r.load(kept[0], col);
                part += gather<true>(kept[0], 0.0f);
            }
            mean = total(part, parts) * p.share;
            part = 0.0f;
        }
        for (u32 col = first; col < p.d; col += STEP) {
            r.load(kept[0], col);
            part += gather<false>(kept[0], mean);
        }
    }
    const f32 scale = rsqrtf(total(part, parts) * p.share + p.eps);

    if constexpr (KEEP > 0) {
#pragma unroll
        for (int i = 0; i < KEEP; ++i) {
            if (first + i * STEP < p.d) r.store(kept[i], first + i * STEP, mean, scale, affine[i]);
        }
    } else {
        for (u32 col = first; col < p.d; col += STEP) {
            r.load(kept[0], col);
            affine[0].load(p, col);
            r.store(kept[0], col, mean, scale, affine[0]);
        }
    }
}
