// The next token of each row from its keys: the largest, or one drawn, see search.cuh.
//
// keys: u32 [rows, vocab rounded up to 4]   best: u64 [rows, blocks]   settings: f32 [rows, 7]   as `keys.cu` leaves them
// -> out: i32 [rows], -1 for a row with a NaN or without a finite largest logit
// histograms: [rows, blocks]   counters: [rows], zero: working memory, where a row has several blocks
//
// The best of a row is that of its blocks; in rows that draw each block surveys CHUNK tokens, and the last one to be done, by the row's
// counter, goes on alone. The host does not know which rows draw, so that greedy ones are part of the same launch.
#include "ops/sample/search.cuh"

struct Params {
    const u32* keys;
    const u64* best;
    const f32* settings;
    Histogram* histograms;
    u32* counters;
    i32* out;
    u64 settings_stride;
    u64 out_stride;
    u32 vocab;
    u32 reserved;
};

// In shared memory.
struct Memory {
    SearchMemory search;
    u64 best[THREADS / 32];
    u32 last;
};
static_assert(sizeof(Memory) <= MEMORY, "the launch gives less");

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    Memory& m = *reinterpret_cast<Memory*>(smem);
    const u32 row = blockIdx.y;
    const u32 blocks = gridDim.x;
    grid_wait();

    const Settings set = *reinterpret_cast<const Settings*>(p.settings + row * p.settings_stride);
    const u64 first = static_cast<u64>(row) * blocks;
    u64 best = 0;
    for (u32 i = threadIdx.x; i < blocks; i += THREADS) best = max_of(best, p.best[first + i]);
    best = block_max<THREADS>(best, m.best);

    i32* const out = p.out + row * p.out_stride;
    const u32 top = rank_key(best);
    // A NaN, or no finite largest logit: no token.
    const bool finite = top > LEAST_KEY && top < INFINITE_KEY;
    if (set.temperature <= 0.0f || !finite) {
        if (blockIdx.x == 0 && threadIdx.x == 0) *out = finite ? static_cast<i32>(rank_token(best)) : -1;
        return;
    }

    const uint4* const keys = reinterpret_cast<const uint4*>(p.keys) + static_cast<u64>(row) * ((p.vocab + 3) / 4);
    Search<THREADS> search = {m.search, keys, p.vocab, p.histograms + first, blocks, 0.0f, 0.0f, 0.0f};
    search.begin(set, top);
    search.survey(set.min_p, blockIdx.x);
    if (blocks > 1) {
        search.leave(p.histograms[first + blockIdx.x]);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) m.last = atomicAdd(&p.counters[row], 1u) == blocks - 1;
        __syncthreads();
        if (!m.last) return;
        __threadfence();
        if (threadIdx.x == 0) p.counters[row] = 0;
        search.merge();
    }
    search.conclude();
    const u32 token = search.draw(set, top);
    if (threadIdx.x == 0) *out = static_cast<i32>(token);
}
