// Tiles of a product: their order, and slices of k that come together.
#pragma once
#include "cuda/include/ptx.cuh"

// A tile's place, in tiles.
struct Place {
    i32 down;   // along the rows of x
    i32 across; // along the columns of the result
};

// Tile `index` of `down` x `across`. Neighbours in this order, which run at the same time, make compact blocks of `GROUP` rows
// of tiles, so that the operands that they share stay in the second-level cache.
template <i32 GROUP> DEVICE Place place_of(i32 index, i32 down, i32 across) {
    const i32 band = index / (GROUP * across), in_band = index % (GROUP * across);
    const i32 height = min_of(GROUP, down - band * GROUP);
    return Place{band * GROUP + in_band % height, in_band / height};
}

// Sums of one tile over slices of k, which different blocks of `THREADS` threads made: each leaves its own in working memory, and
// the last to arrive adds all of them in the order of k, so that the result is the same each time. Returns whether this block
// is the last; `sums` are those of all slices then, and `counter` is zero again.
//
// sums of slice s lie at `memory + s * QUADS * THREADS` float4. `flag` is a word of shared memory.
template <int THREADS, int QUADS>
DEVICE bool join_slices(f32 (&sums)[QUADS][4], float4* memory, u32* counter, i32 slice, i32 slices, u32* flag) {
    float4* const mine = memory + slice * QUADS * THREADS + threadIdx.x;
#pragma unroll
    for (i32 i = 0; i < QUADS; ++i) mine[i * THREADS] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *flag = atomicAdd(counter, 1u);
    __syncthreads();
    if (*flag != static_cast<u32>(slices - 1)) return false;
    if (threadIdx.x == 0) *counter = 0;
    __threadfence();
#pragma unroll
    for (i32 i = 0; i < QUADS; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    for (i32 s = 0; s < slices; ++s) {
        const float4* const from = memory + s * QUADS * THREADS + threadIdx.x;
#pragma unroll
        for (i32 i = 0; i < QUADS; ++i) {
            const float4 v = from[i * THREADS];
            sums[i][0] += v.x, sums[i][1] += v.y, sums[i][2] += v.z, sums[i][3] += v.w;
        }
    }
    return true;
}
