// Logits as integers of the same order, and tokens ranked by them.
//
// Minus infinity, the least key of a token, is 0x007fffff; infinity is 0xff800000, NaN the largest; no key is 0.
#pragma once
#include "cuda/include/ptx.cuh"

constexpr u32 LEAST_KEY = 0x007fffffu;
constexpr u32 INFINITE_KEY = 0xff800000u;

// One NaN, so that a row with any has it as its largest key; and one zero.
DEVICE u32 key_of(f32 logit) {
    u32 bits = __float_as_uint(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0x7fffffffu;
    if (bits == 0x80000000u) bits = 0;
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

DEVICE f32 logit_of(u32 key) { return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

// A token's place in the ranking, by key and then by lower number: the larger, the further ahead.
DEVICE u64 rank_of(u32 key, u32 token) { return static_cast<u64>(key) << 32 | ~token; }
DEVICE u32 rank_key(u64 rank) { return static_cast<u32>(rank >> 32); }
DEVICE u32 rank_token(u64 rank) { return ~static_cast<u32>(rank); }

// The largest over the SIZE threads of the block; every thread gets it. `parts`: SIZE / 32 numbers of shared memory.
template <u32 SIZE> DEVICE u64 block_max(u64 v, u64* parts) {
#pragma unroll
    for (i32 mask = 16; mask > 0; mask /= 2) {
        const u32 low = shfl_xor(static_cast<u32>(v), mask);
        const u64 other = static_cast<u64>(shfl_xor(static_cast<u32>(v >> 32), mask)) << 32 | low;
        v = max_of(v, other);
    }
    if (lane_id() == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    for (u32 i = 0; i < SIZE / 32; ++i) v = max_of(v, parts[i]);
    __syncthreads();
    return v;
}
