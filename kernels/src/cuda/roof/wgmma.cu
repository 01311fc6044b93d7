// Products of Hopper's warpgroups from shared memory (wgmma.m64n256k16, bf16 with f32 sums): the rate of sm_90a.
//
// SASS: HGMMA
//
// out: f32 [blocks * threads]. A turn is four products of a warpgroup, on pseudo-random values: the power that zeros save would
// raise the clock. Two warpgroups a block, one block a multiprocessor.
#include "cuda/include/wgmma.cuh"

struct Params {
    f32* out;
    u32 turns;
};

constexpr u32 A_BYTES = 2 * 64 * 128, B_BYTES = 256 * 128;

KERNEL(256, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    u32* words = reinterpret_cast<u32*>(smem);
    u32 state = threadIdx.x * 2654435761u + 12345u;
    for (u32 i = threadIdx.x; i < (A_BYTES + B_BYTES) / 4; i += blockDim.x) {
        state = state * 1664525u + 1013904223u;
        words[i] = pack2<bf16>(static_cast<f32>(state >> 24) * 0.004f - 0.5f, static_cast<f32>(state >> 16 & 255) * 0.004f - 0.5f);
    }
    fence_async_shared();
    __syncthreads();
    const u64 a = wgmma_descriptor(smem + threadIdx.x / 128 * (A_BYTES / 2));
    const u64 b = wgmma_descriptor(smem + A_BYTES);
    f32 d[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) d[i] = 0;
    for (u32 turn = 0; turn < p.turns; ++turn) {
        wgmma_fence();
        // A step of 16 along k is 32 bytes, in units of 16.
#pragma unroll
        for (int k = 0; k < 4; ++k) wgmma_ss<256, bf16>(d, a + 2 * k, b + 2 * k, true);
        wgmma_commit();
        wgmma_wait<0>();
    }
    f32 sum = 0;
#pragma unroll
    for (int i = 0; i < 128; ++i) sum += d[i];
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
