// out = act((x - mean) / sqrt(var + eps) * weight + bias), mean and variance of a group of neighbouring channels of all rows of a
// picture
//
// x: [pictures * rows, groups * each]   weight, bias: [groups * each]   out: as x, or the very elements of it
//
// A block makes one group of one picture. It goes through the rows three times: for the mean, for the variance about it, so that
// nothing cancels, and for the result; the second and third time most of it comes from the second-level cache. A thread takes every
// THREADS-th vector of VEC neighbouring channels of the group, and writes what it alone has read.
#include "cuda/include/reduce.cuh"
#include "ops/matmul/epilogue.cuh"

struct Params {
    const void* x;
    const void* weight;
    const void* bias;
    void* out;
    i64 x_stride;
    i64 out_stride;
    u32 rows;
    // Channels of a group.
    u32 each;
    u32 groups;
    u32 x_type;
    u32 weight_type;
    u32 bias_type;
    u32 out_type;
    u32 act;
    f32 eps;
    u32 padding;
};

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* parts = reinterpret_cast<f32*>(smem);
    grid_wait();
    const i64 top = static_cast<i64>(blockIdx.x / p.groups) * p.rows;
    const u32 first = blockIdx.x % p.groups * p.each;
    const u32 across = p.each / VEC;
    const u32 count = p.rows * across;
    const f32 share = 1.0f / (static_cast<f32>(p.rows) * static_cast<f32>(p.each));

    f32 v[VEC];
    f32 sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        load_group(v, p.x, p.x_type, (top + i / across) * p.x_stride + first + i % across * VEC);
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum += v[j];
    }
    const f32 mean = block_sum<THREADS>(sum, parts) * share;
    sum = 0.0f;
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        load_group(v, p.x, p.x_type, (top + i / across) * p.x_stride + first + i % across * VEC);
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum = fmaf(v[j] - mean, v[j] - mean, sum);
    }
    const f32 scale = rsqrtf(block_sum<THREADS>(sum, parts) * share + p.eps);
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        const i64 row = top + i / across;
        const u32 col = first + i % across * VEC;
        f32 weight[VEC], bias[VEC];
        load_group(v, p.x, p.x_type, row * p.x_stride + col);
        load_group(weight, p.weight, p.weight_type, col);
        load_group(bias, p.bias, p.bias_type, col);
#pragma unroll
        for (int j = 0; j < VEC; ++j) v[j] = fmaf((v[j] - mean) * scale, weight[j], bias[j]);
        activate_all(v, p.act);
        store_group(p.out, p.out_type, row * p.out_stride + col, v);
    }
}
