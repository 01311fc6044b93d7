// out[t] = sum over steps of x[step, 127 - t]: cp.async into a ring of two stages.
#include "cuda/include/ptx.cuh"

struct Params {
    const f32* x; // [steps, 128]
    f32* out;     // [128]
    i32 steps;
    i32 pad;
};

KERNEL(32, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    const i32 i = static_cast<i32>(threadIdx.x);
    const auto stage = [&](i32 step) { return reinterpret_cast<f32*>(smem) + step % 2 * 128; };
    const auto start = [&](i32 step) {
        if (step < p.steps) cp_async_16(stage(step) + 4 * i + (MISTAKE == 1 ? 1 : 0), p.x + 128 * step + 4 * i);
        cp_async_commit();
    };
    start(0);
    f32 sum[4] = {};
    for (i32 step = 0; step < p.steps; ++step) {
        if (MISTAKE != 2) start(step + 1);
        if (MISTAKE == 3) cp_async_wait<2>();
        else cp_async_wait<1>();
        if (MISTAKE != 4) __syncthreads();
        for (i32 j = 0; j < 4; ++j) sum[j] += stage(step)[127 - 4 * i - j];
        if (MISTAKE != 5) __syncthreads();
    }
    for (i32 j = 0; j < 4; ++j) p.out[4 * i + j] = sum[j];
}
