// The `top` experts of each row by its logits, and their weights.
//
// logits: [rows, experts] of type X   bias, factors: f32 [experts], or null   ids: i32, weights: f32 [rows, top]
//
// A warp takes a row, whose scores and keys lie in shared memory: 1024 experts at most. Each round of `top` finds the largest
// key, of equals the one of the lowest number, and takes it out. Without a bias keys are the logits themselves: scores ascend
// with them, and rounding does not decide.
#include "cuda/include/ptx.cuh"

struct Params {
    const X* logits;
    const f32* bias;
    const f32* factors;
    i32* ids;
    f32* weights;
    u64 logits_stride;
    u32 experts;
    u32 top;
    u32 normalize;
    f32 scale;
};
constexpr u32 MOST = 1024;
constexpr f32 LEAST = -3.402823466e38f;

KERNEL(32, 8)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const scores = reinterpret_cast<f32*>(smem);
    f32* const keys = scores + MOST;
    const u32 lane = threadIdx.x;
    grid_wait();
    const X* logits = p.logits + blockIdx.x * p.logits_stride;
    f32 most = LEAST;
    for (u32 i = lane; i < p.experts; i += 32) {
        keys[i] = to_f32(logits[i]);
        most = fmaxf(most, keys[i]);
    }
    most = warp_max(most);
    f32 total = 0.0f;
    for (u32 i = lane; i < p.experts; i += 32) {
        scores[i] = SOFTMAX ? expf(keys[i] - most) : 1.0f / (1.0f + expf(-keys[i]));
        total += scores[i];
    }
    total = warp_sum(total);
    for (u32 i = lane; i < p.experts; i += 32) {
        if (SOFTMAX) scores[i] /= total;
        if (p.bias != nullptr) keys[i] = scores[i] + p.bias[i];
    }
    __syncthreads();
    // Experts of this lane that were taken, a bit each.
    u32 taken = 0;
    f32 sum = 0.0f;
    for (u32 round = 0; round < p.top; ++round) {
        f32 best = LEAST;
        u32 place = MOST;
        for (u32 i = lane, bit = 0; i < p.experts; i += 32, ++bit) {
            if ((taken >> bit & 1) == 0 && (place == MOST || keys[i] > best)) best = keys[i], place = i;
        }
#pragma unroll
        for (i32 step = 16; step > 0; step /= 2) {
            const f32 other = shfl_xor(best, step);
            const u32 at = shfl_xor(place, step);
            const bool first = at != MOST && (place == MOST || other > best || (other == best && at < place));
            if (first) best = other, place = at;
        }
        // Where logits are no numbers, any expert serves: the result is none either.
        const u32 id = min_of(shfl(place, 0), p.experts - 1);
        if (lane == id % 32) taken |= 1u << id / 32;
        sum += scores[id];
        if (lane == 0) p.ids[blockIdx.x * p.top + round] = static_cast<i32>(id);
    }
    if (lane > 0) return;
    const f32 share = p.normalize != 0 ? p.scale / sum : p.scale;
    for (u32 round = 0; round < p.top; ++round) {
        const u32 at = blockIdx.x * p.top + round;
        const u32 id = static_cast<u32>(p.ids[at]);
        p.weights[at] = scores[id] * share * (p.factors != nullptr ? p.factors[id] : 1.0f);
    }
}
