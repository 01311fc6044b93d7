// The next token of each row from its logits: the largest, or one drawn, see search.cuh.
//
// logits: [rows, vocab] of type X   settings: f32 [rows, 7]   history: i32 [rows, width] or null
// mask: bits [masks, vocab / 32] or null
// -> out: i32 [rows], -1 for a row with a NaN or without a finite largest logit
// keys: u32 [rows, pitch], pitch = vocab rounded up to 4   best: u64 [rows, blocks]   counters: [rows], zero: working memory
//
// A block takes `chunk` neighbouring tokens of a row, VEC = 4 at a time a thread where rows are aligned. With a repetition
// penalty it first goes through the row's history and marks the tokens of its chunk in a bit mask, so that a token seen
// twice is penalized once. Logits of tokens that the row's mask leaves out become minus infinity, but NaN stays. Its best token goes to memory, and so do the keys of all its tokens if one is to be drawn. The
// last block of a row to be done, by the row's counter, takes the best of the blocks; in rows that draw it goes on alone. A row
// of one block needs no counter. One launch serves greedy and drawing rows, because the host does not know which are which.
#include "cuda/include/vec.cuh"
#include "ops/sample/search.cuh"

struct Params {
    const X* logits;
    const f32* settings;
    const i32* history;
    const u32* mask;
    u32* keys;
    u64* best;
    i32* counters;
    i32* out;
    u64 logits_stride;
    u64 settings_stride;
    u64 history_stride;
    u64 mask_stride;
    u64 out_stride;
    u32 vocab;
    // Tokens of a row's history.
    u32 width;
    // Tokens of a block, a multiple of 32.
    u32 chunk;
    // Rows of the mask.
    u32 masks;
};

// In shared memory; the bit mask of seen tokens follows it, MEMORY bytes from the beginning.
struct Memory {
    SearchMemory search;
    u64 best[32];
    u32 last;
};
static_assert(sizeof(Memory) <= MEMORY, "the launch gives less");

// The largest over the block; every thread gets it.
DEVICE u64 block_max(u64 v, u64* parts) {
    for (i32 mask = 16; mask > 0; mask /= 2) {
        const u32 low = shfl_xor(static_cast<u32>(v), mask);
        const u64 other = static_cast<u64>(shfl_xor(static_cast<u32>(v >> 32), mask)) << 32 | low;
        v = max_of(v, other);
    }
    if (lane_id() == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    for (u32 i = 0; i < THREADS / 32; ++i) v = max_of(v, parts[i]);
    __syncthreads();
    return v;
}

// Marks the tokens of the chunk from `first` on that are in the row's history.
DEVICE void mark_seen(const Params& p, u32 row, u32 first, u32* seen) {
    for (u32 i = threadIdx.x; i < p.chunk / 32; i += THREADS) seen[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < p.width; i += THREADS) {
        // Padding is negative: a number beyond every chunk.
        const u32 place = static_cast<u32>(p.history[row * p.history_stride + i]) - first;
        if (place < p.chunk) atomicOr(&seen[place / 32], 1u << (place % 32));
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
    Memory& m = *reinterpret_cast<Memory*>(smem);
    u32* seen = reinterpret_cast<u32*>(smem + MEMORY);
    const u32 row = blockIdx.y;
    const u32 first = blockIdx.x * p.chunk;
    const u32 blocks = gridDim.x;
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
    const u32 end = min_of(first + p.chunk, p.vocab);
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
    best = block_max(best, m.best);

    if (blocks > 1) {
        if (threadIdx.x == 0) p.best[static_cast<u64>(row) * blocks + blockIdx.x] = best;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) m.last = atomicAdd(&p.counters[row], 1) == static_cast<i32>(blocks) - 1;
        __syncthreads();
        if (!m.last) return;
        __threadfence();
        if (threadIdx.x == 0) p.counters[row] = 0;
        for (u32 i = threadIdx.x; i < blocks; i += THREADS) {
            best = max_of(best, p.best[static_cast<u64>(row) * blocks + i]);
        }
        best = block_max(best, m.best);
    }

    i32* out = p.out + row * p.out_stride;
    const u32 top = rank_key(best);
    // A NaN, or no finite largest logit: no token.
    const bool finite = top > LEAST_KEY && top < INFINITE_KEY;
    if (greedy || !finite) {
        if (threadIdx.x == 0) *out = finite ? static_cast<i32>(rank_token(best)) : -1;
        return;
    }
    __syncthreads();
    Search<THREADS> search = {m.search, keys, p.vocab, 0.0f, 0.0f, 0.0f};
    const u32 token = search.draw(set, top);
    if (threadIdx.x == 0) *out = static_cast<i32>(token);
}
