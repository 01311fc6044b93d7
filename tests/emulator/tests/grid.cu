// Blocks that wait for each other, launched as a cooperative grid: out[block] = sum over all blocks of block + 1, and a count.
#include "cuda/include/ptx.cuh"

struct Params {
    u32* arrived; // zero
    i32* values;  // [blocks]
    i32* out;     // [blocks + 1], zero
};

KERNEL(32, 1)(const __grid_constant__ Params p) {
    if (threadIdx.x == 0) {
        p.values[blockIdx.x] = static_cast<i32>(blockIdx.x) + 1;
        __threadfence();
        atomicAdd(p.arrived, 1u);
        while (load_acquire(p.arrived) < gridDim.x) {}
    }
    __syncthreads();
    i32 sum = 0;
    for (u32 block = 0; block < gridDim.x; ++block) sum += p.values[block];
    if (threadIdx.x == 0) p.out[blockIdx.x] = sum;
    atomicAdd(p.out + gridDim.x, 1);
}
