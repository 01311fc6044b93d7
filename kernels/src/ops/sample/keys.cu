// Logits as keys, for `pick.cu`: penalized and masked integers of the order of the logits, see order.cuh, and the best token of each block.
//
// logits: [rows, vocab] of type X   settings: f32 [rows, 7]   history: i32 [rows, width] or null
// mask: bits [masks, vocab / 32] or null
// -> keys: u32 [rows, vocab rounded up to 4] of rows that draw   best: u64 [rows, blocks]
//
// A block takes CHUNK neighbouring tokens of a row, VEC = 4 at a time a thread where rows are aligned. With a repetition
// penalty it first goes through the row's history and marks the tokens of its chunk in a bit mask, so that a token seen
// twice is penalized once. Logits of tokens that the row's mask leaves out become minus infinity, but NaN stays.
#include "cuda/include/vec.cuh"
#include "ops/sample/order.cuh"
#include "ops/sample/settings.cuh"

struct Params {
    const X* logits;
    const f32* settings;
    const i32* history;
    const u32* mask;
    u32* keys;
    u64* best;
    u64 logits_stride;
    u64 settings_stride;
    u64 history_stride;
    u64 mask_stride;
    u32 vocab;
    // Tokens of a row's history.
    u32 width;
    // Rows of the mask.
    u32 masks;
    u32 reserved;
};

// Shared memory: marks of the chunk's tokens, then parts of the block's maximum.
constexpr u32 MARKS = CHUNK / 32;

// Marks the tokens of the chunk from `first` on that are in the row's history.
DEVICE void mark_seen(const Params& p, u32 row, u32 first, u32* seen) {
    for (u32 i = threadIdx.x; i < MARKS; i += THREADS) seen[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < p.width; i += THREADS) {
        // Padding is negative: a number beyond every chunk.
        const u32 place = static_cast<u32>(p.history[row * p.history_stride + i]) - first;
        if (place < CHUNK) atomicOr(&seen[place / 32], 1u << (place % 32));
    }
    __syncthreads();
}

DEVICE f32 penalized(f32 logit, f32 penalty) {
    const bool finite = (__float_as_uint(logit) & 0x7f800000u) != 0x7f800000u;
    return !finite ? logit : logit > 0.0f ? logit / penalty : logit * penalty;
}

// Logits `token..token + 4`; those beyond the vocabulary repeat the last.
DEVICE void load_four(f32 (&to)[4], const X* row, u32 token, u32 vocab) {
    if constexpr (VEC == 4) {
        load_vec(to, row + token);
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[i] = to_f32(row[min_of(token + i, vocab - 1)]);
    }
}

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    u32* const seen = reinterpret_cast<u32*>(smem);
    u64* const parts = reinterpret_cast<u64*>(seen + MARKS);
    const u32 row = blockIdx.y;
    const u32 first = blockIdx.x * CHUNK;
    grid_wait();

    const Settings set = *reinterpret_cast<const Settings*>(p.settings + row * p.settings_stride);
    const bool greedy = set.temperature <= 0.0f;
    const bool penalizes = p.width > 0 && set.repetition_penalty != 1.0f;
    if (penalizes) mark_seen(p, row, first, seen);

    const u32 mask_number = p.masks > 0 && set.mask >= 1.0f ? static_cast<u32>(set.mask) : 0;
    const bool masked = mask_number > 0 && mask_number <= p.masks;
    const u32* mask = masked ? p.mask + (mask_number - 1) * p.mask_stride : nullptr;

    const X* logits = p.logits + row * p.logits_stride;
    uint4* keys = reinterpret_cast<uint4*>(p.keys) + static_cast<u64>(row) * ((p.vocab + 3) / 4);
    const u32 end = min_of(first + CHUNK, p.vocab);
    u64 best = 0;
    for (u32 token = first + 4 * threadIdx.x; token < end; token += 4 * THREADS) {
        f32 four[4];
        load_four(four, logits, token, p.vocab);
        const u32 allowed = masked ? mask[token / 32] >> (token % 32) : 0xfu;
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 place = token - first + i;
            const bool again = penalizes && (seen[place / 32] >> (place % 32) & 1);
            if (again) four[i] = penalized(four[i], set.repetition_penalty);
            u32 key = key_of(four[i]);
            if (!(allowed >> i & 1) && key <= INFINITE_KEY) key = LEAST_KEY;
            words[i] = token + i < p.vocab ? key : 0;
            best = max_of(best, rank_of(words[i], token + i));
        }
        if (!greedy) keys[token / 4] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    best = block_max<THREADS>(best, parts);
    if (threadIdx.x == 0) p.best[static_cast<u64>(row) * gridDim.x + blockIdx.x] = best;
}
