// out[i] = exp(x[i]) / sum of exp(x[j])
//
// x: [rows, d] of type X   out: [rows, d] of type OUT
//
// A block takes a row, a thread VEC neighbouring elements at a time: 8 where all rows begin at 16 bytes and d is a multiple of 8,
// else 1. First for the largest logit, then for the sum of the powers, then for the results; each pass reads the row again.
#include "cuda/include/math.cuh"
#include "cuda/include/reduce.cuh"
#include "cuda/include/vec.cuh"

struct Params {
    const X* x;
    OUT* out;
    u64 x_stride;
    u64 out_stride;
    u32 d;
    u32 padding;
};

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* parts = reinterpret_cast<f32*>(smem);
    grid_wait();
    const X* x = p.x + blockIdx.x * p.x_stride;
    OUT* out = p.out + blockIdx.x * p.out_stride;
    const u32 first = threadIdx.x * VEC;
    const u32 step = THREADS * VEC;
    f32 v[VEC];

    f32 most = to_f32(x[0]);
    for (u32 col = first; col < p.d; col += step) {
        load_vec(v, x + col);
#pragma unroll
        for (int i = 0; i < VEC; ++i) most = fmaxf(most, v[i]);
    }
    most = block_max<THREADS>(most, parts);
    f32 sum = 0.0f;
    for (u32 col = first; col < p.d; col += step) {
        load_vec(v, x + col);
#pragma unroll
        for (int i = 0; i < VEC; ++i) sum += exp_f32(v[i] - most);
    }
    const f32 share = 1.0f / block_sum<THREADS>(sum, parts);
    for (u32 col = first; col < p.d; col += step) {
        load_vec(v, x + col);
#pragma unroll
        for (int i = 0; i < VEC; ++i) v[i] = exp_f32(v[i] - most) * share;
        store_vec(out + col, v);
    }
}
