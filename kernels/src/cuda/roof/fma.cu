// Multiply-adds of f32 from registers: the rate that products outside of tensor cores are held against.
//
// SASS: FFMA
//
// out: f32 [blocks * threads]. A turn is CHAINS independent multiply-adds a thread.
#include "cuda/include/ptx.cuh"

struct Params {
    f32* out;
    u32 turns;
};

constexpr int CHAINS = 16;

KERNEL(256, 4)(const __grid_constant__ Params p) {
    f32 x[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) x[i] = 0.001f * (threadIdx.x + i);
    for (u32 turn = 0; turn < p.turns; ++turn) {
#pragma unroll
        for (int i = 0; i < CHAINS; ++i) x[i] = fmaf(x[i], 0.999f, 0.5f);
    }
    f32 sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; ++i) sum += x[i];
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
