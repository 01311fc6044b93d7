// shift[n] = bias[n] - sum_c mean[c] / std[c] * sum_i w[n, c, i]
//
// w: [N, 3, area] of type W, area = patch^2   bias: [N] of type BIAS or null -> shift: f32 [N]
//
// What the normalization of the pixels adds to a result of filter n, whatever the pixels are: see mma.cu. A warp has a filter.
#include "cuda/include/ptx.cuh"

struct Params {
    const W* w;
    const BIAS* bias;
    f32* shift;
    u64 w_stride;
    u32 n;
    u32 area;
    f32 mean[3];
    // 1 / std.
    f32 scale[3];
};

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    const u32 n = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    grid_wait();
    if (n >= p.n) return;
    f32 shift = p.bias ? to_f32(p.bias[n]) : 0.0f;
#pragma unroll
    for (u32 c = 0; c < 3; ++c) {
        const W* filter = p.w + n * p.w_stride + c * p.area;
        f32 sum = 0.0f;
#pragma unroll 8
        for (u32 i = lane_id(); i < p.area; i += 32) sum += to_f32(filter[i]);
        shift = fmaf(-p.mean[c] * p.scale[c], warp_sum(sum), shift);
    }
    if (lane_id() == 0) p.shift[n] = shift;
}
