// Threads that meet: out[0] is the sum of x, out[1] the number of positive elements, out[2..] x in reverse, one element a thread.
#include "cuda/include/ptx.cuh"

struct Params {
    const f32* x;
    f32* out;
};

KERNEL(128, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const sums = reinterpret_cast<f32*>(smem);
    f32* const held = sums + 8;
    const i32 i = static_cast<i32>(threadIdx.x), last = static_cast<i32>(blockDim.x) - 1;
    const f32 x = p.x[i];

    if (MISTAKE == 1 && i == 5) return; // the others of its warp wait for it
    if (MISTAKE == 2 && i % 2) __syncwarp();
    const f32 sum = warp_sum(x);
    const u32 positive = __popc(ballot(x > 0.0f));
    if (lane_id() == 0) {
        sums[i / 32] = sum;
        sums[4 + i / 32] = static_cast<f32>(positive);
    }
    held[i] = x;
    if (MISTAKE != 3) __syncthreads();
    const f32 reversed = held[last - i];
    if (i < 2) {
        f32 all = 0.0f;
        for (i32 warp = 0; warp < 4; ++warp) all += sums[4 * i + warp];
        p.out[i] = all;
    }
    if (MISTAKE != 4) __syncthreads();
    held[i] = reversed;
    p.out[2 + i] = held[i];
    // Lanes of a warp by turns, ordered by the barrier of the warp alone.
    for (i32 turn = 0; turn < 32; ++turn) {
        if (lane_id() == static_cast<u32>(turn)) sums[i / 32] += 1.0f;
        if (MISTAKE != 5) __syncwarp();
    }
    if (lane_id() == 0 && sums[i / 32] != sum + 32.0f && MISTAKE == 0 && sum == static_cast<i32>(sum)) p.out[0] = -1.0f;
}
