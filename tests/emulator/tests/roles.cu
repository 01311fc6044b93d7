// Warp 0 fills a buffer with x, round by round; warp 1 adds it to out. Named barriers tell when it is full and when empty.
#include "cuda/include/ptx.cuh"

struct Params {
    const f32* x; // [rounds, 32]
    f32* out;     // [32]
    i32 rounds;
    i32 pad;
};

KERNEL(64, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const buffer = reinterpret_cast<f32*>(smem);
    const u32 lane = lane_id();
    constexpr u32 FULL = 1, EMPTY = 2;
    if (warp_id() == 0) {
        for (i32 round = 0; round < p.rounds; ++round) {
            if (round > 0 && MISTAKE != 1) barrier_sync(EMPTY, 64);
            buffer[lane] = p.x[32 * round + lane];
            barrier_arrive(FULL, MISTAKE == 2 ? 32 : 64);
        }
    } else {
        f32 sum = 0.0f;
        for (i32 round = 0; round < p.rounds; ++round) {
            if (MISTAKE != 3) barrier_sync(FULL, 64);
            sum += buffer[31 - lane];
            if ((round + 1 < p.rounds && MISTAKE != 1 && MISTAKE != 4)) barrier_arrive(EMPTY, 64);
        }
        p.out[lane] = sum;
    }
}
