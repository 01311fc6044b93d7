// Sums and maxima over a block, in an order that does not change.
#pragma once
#include "cuda/include/ptx.cuh"

// Sum of `v` over the SIZE threads of the block; every thread gets it. `parts`: SIZE / 32 floats of shared memory, which
// may be used again right after.
template <int SIZE> DEVICE f32 block_sum(f32 v, f32* parts) {
    v = warp_sum(v);
    if (lane_id() == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    f32 sum = lane_id() < SIZE / 32 ? parts[lane_id()] : 0.0f;
    sum = warp_sum(sum);
    __syncthreads();
    return sum;
}

// The largest of `v` over the SIZE threads of the block, likewise.
template <int SIZE> DEVICE f32 block_max(f32 v, f32* parts) {
    v = warp_max(v);
    if (lane_id() == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    const f32 most = warp_max(parts[lane_id() % (SIZE / 32)]);
    __syncthreads();
    return most;
}
