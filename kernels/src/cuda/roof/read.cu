// Reads memory as fast as it comes: what copies and products of few rows are held against.
//
// SASS: LDG*.128
//
// data: [quads] of 16 bytes   out: u32 [blocks]
//
// Each thread takes DEPTH quads at a time, a block apart, so that a warp's loads are whole lines and many are in flight. The
// sum is written so that no load is left out.
#include "cuda/include/ptx.cuh"

struct Params {
    const uint4* data;
    u32* out;
    u64 quads;
};

constexpr int DEPTH = 8;

KERNEL(512, 2)(const __grid_constant__ Params p) {
    u32 sum = 0;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.quads; i += DEPTH * step) {
        uint4 v[DEPTH];
#pragma unroll
        for (int j = 0; j < DEPTH; ++j) {
            v[j] = make_uint4(0, 0, 0, 0);
            if (i + j * step < p.quads) v[j] = load_stream(p.data + i + j * step);
        }
#pragma unroll
        for (int j = 0; j < DEPTH; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    atomicAdd(p.out + blockIdx.x, sum);
}
