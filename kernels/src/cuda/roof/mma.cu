// Products of tensor cores from registers (mma.m16n8k16, bf16 with f32 sums): the rate of sm_80 to sm_120.
//
// SASS: HMMA
//
// out: f32 [blocks * threads]. A turn is TILES independent products a warp.
#include "cuda/include/ptx.cuh"

struct Params {
    f32* out;
    u32 turns;
};

constexpr int TILES = 8;

KERNEL(256, 2)(const __grid_constant__ Params p) {
    f32 d[TILES][4] = {};
    u32 a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = pack2<bf16>(0.01f * (lane_id() + i), -0.02f * i);
#pragma unroll
    for (int i = 0; i < 2; ++i) b[i] = pack2<bf16>(0.03f * (lane_id() % 5), 0.01f * i);
    for (u32 turn = 0; turn < p.turns; ++turn) {
#pragma unroll
        for (int i = 0; i < TILES; ++i) mma_16816<bf16>(d[i], a, b[0], b[1]);
    }
    f32 sum = 0;
#pragma unroll
    for (int i = 0; i < TILES; ++i) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
