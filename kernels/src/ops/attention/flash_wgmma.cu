// Attention on Hopper's tensor cores by wgmma (sm_90a), queries, keys and values of one 16-bit type.
//
// A block is persistent: one per multiprocessor, which takes tiles of 64 CONSUMERS query rows of a key head of a sequence. Its
// warpgroups have roles:
//
//   The producer, a single thread, has the copy engine fill a ring of STAGES pairs of tiles of TILE_K keys and values. It runs
//     ahead of the consumers, over the end of a tile of rows too.
//   Consumers have 64 rows each. Scores are q k^T with both operands in shared memory; powers become the left operand of the
//     second product in registers, so that they never leave them.
//
// The multiply units work while softmaxes are computed, in two ways. A consumer starts the scores of the next tile before the
// second product of this one, and takes their softmax while that runs. And consumers take turns to start their products: while
// those of one run, another has its softmax.
//
// Shared memory holds columns in blocks of 64, a row of 128 bytes each, permuted as wgmma reads them (128-byte swizzle). Keys
// are K-major there, values MN-major: both as they come. Heads that are no multiple of 64 are filled with zeros by the copy
// engine, and the products leave out what is beyond a multiple of 16. Pages are fetched in boxes of BOX rows.
//
// Rows beyond the end of a sequence are those of the next one, or of nobody; those before a window may be garbage. Scores of such
// keys are hidden, as of all that a row does not see on the border; their values in the first and the last tile are set to zero,
// because garbage times zero may be garbage.
//
// X: bf16 or f16; PAGE: slots of a page, 0 for packed keys; SOFTCAP; RANGES: see sequence.cuh.
// Grid: at most as many blocks as there are tiles.
// SASS: HGMMA.64x UTMALDG.3D MUFU.EX2 SYNCS
#include "cuda/include/wgmma.cuh"
#include "ops/attention/softmax.cuh"

constexpr i32 THREADS = 128 * (CONSUMERS + 1);
constexpr i32 TILE_Q = 64 * CONSUMERS;
constexpr i32 DIM = ceil_div(HEAD_DIM, 16) * 16;
constexpr i32 COLUMN_BLOCKS = ceil_div(HEAD_DIM, 64);

// Shared memory: queries of each consumer, the ring, barriers. A block of columns of a tile of keys or values:
constexpr i32 BLOCK_BYTES = TILE_K * 128;
constexpr i32 TILE_BYTES = COLUMN_BLOCKS * BLOCK_BYTES;
constexpr i32 Q_BYTES = COLUMN_BLOCKS * 64 * 128;
constexpr i32 K_AT = CONSUMERS * Q_BYTES;
constexpr i32 V_AT = K_AT + STAGES * TILE_BYTES;
constexpr i32 BARRIERS_AT = V_AT + STAGES * TILE_BYTES;

// Named barriers: a consumer's own, its turn, and one of all consumers.
constexpr u32 OWN = 1;
constexpr u32 TURN = OWN + CONSUMERS;
constexpr u32 ALL_CONSUMERS = TURN + CONSUMERS;

struct Params {
    TensorMap k;
    TensorMap v;
    Operands o;
    // Tiles of rows of the longest sequence, key heads of all sequences, and those that are worked on together because the cache
    // holds their keys and values.
    i32 row_tiles, units, together;
    i32 reserved;
};

// What a tile of rows is, from its number. Late rows see most keys: they come first.
struct Work {
    Sequence s;
    i32 head, first_row, last_row;

    DEVICE Work(const Params& p, i32 tile) {
        const i32 section = tile / (p.together * p.row_tiles);
        const i32 rest = tile - section * p.together * p.row_tiles;
        const i32 here = min_of(p.together, p.units - section * p.together);
        const i32 row_tile = p.row_tiles - 1 - rest / here;
        const i32 unit = section * p.together + rest % here;
        head = unit % p.o.heads_kv;
        s = read_sequence(p.o, unit / p.o.heads_kv);
        first_row = row_tile * TILE_Q;
        last_row = min_of(first_row + TILE_Q, rows_of(p.o, s)) - 1;
    }
    DEVICE bool exists() const { return first_row <= last_row; }
    DEVICE KeyTiles<TILE_K> tiles(const Operands& o) const { return KeyTiles<TILE_K>(o, s, first_row, last_row); }
};

// Where the ring stands: a stage, and how often it came around.
struct Stage {
    i32 number = 0;
    u32 round = 0;
    DEVICE void next() {
        if (++number == STAGES) number = 0, round ^= 1;
    }
};

// Barriers of the ring, one a stage.
struct Ring {
    u64 *k_full, *v_full, *k_free, *v_free;
    DEVICE explicit Ring(u8* smem) {
        k_full = reinterpret_cast<u64*>(smem + BARRIERS_AT);
        v_full = k_full + STAGES;
        k_free = v_full + STAGES;
        v_free = k_free + STAGES;
    }
};

// Has a tile of keys or values fetched, from key `key` of a sequence on.
DEVICE void fetch_tile(u8* to, const TensorMap& map, u64* full, const Params& p, const Work& work, i32 key) {
    mbarrier_arrive_expect(full, TILE_BYTES);
    for (i32 row = 0; row < TILE_K; row += BOX) {
        // Boxes of pages that a sequence does not have any more bring its last page again.
        const i32 j = PAGE > 0 ? min_of(key + row, (work.s.kv_len - 1) / BOX * BOX) : key + row;
        const Slot slot = slot_of(p.o, work.s, j, PAGE);
#pragma unroll
        for (i32 block = 0; block < COLUMN_BLOCKS; ++block)
            tma_load_3d(to + block * BLOCK_BYTES + row * 128, &map, full, 64 * block, work.head,
                        slot.page * PAGE + slot.slot);
    }
}

DEVICE void produce(const Params& p, u8* smem) {
    const Ring ring(smem);
    tensor_map_prefetch(&p.k);
    tensor_map_prefetch(&p.v);
    Stage stage;
    for (i32 tile = blockIdx.x; tile < p.row_tiles * p.units; tile += gridDim.x) {
        const Work work(p, tile);
        if (!work.exists()) continue;
        const KeyTiles<TILE_K> tiles = work.tiles(p.o);
        for (i32 i = 0; i < tiles.count; ++i) {
            const i32 key = tiles.key(i);
            mbarrier_wait(ring.k_free + stage.number, stage.round ^ 1);
            fetch_tile(smem + K_AT + stage.number * TILE_BYTES, p.k, ring.k_full + stage.number, p, work, key);
            mbarrier_wait(ring.v_free + stage.number, stage.round ^ 1);
            fetch_tile(smem + V_AT + stage.number * TILE_BYTES, p.v, ring.v_full + stage.number, p, work, key);
            stage.next();
        }
    }
}

// Copies a consumer's 64 query rows to shared memory; absent ones are zeros.
DEVICE void fetch_queries(u8* to, const Operands& o, const Work& work, i32 row) {
    constexpr i32 PARTS = COLUMN_BLOCKS * 8;
#pragma unroll 4
    for (i32 i = threadIdx.x % 128; i < 64 * PARTS; i += 128) {
        const i32 r = i / PARTS;
        const i32 part = i % PARTS;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row + r <= work.last_row && 8 * part < HEAD_DIM) {
            const X* const from = static_cast<const X*>(o.q) + q_place(o, work.s, work.head, row + r);
            v = *reinterpret_cast<const uint4*>(from + 8 * part);
        }
        *reinterpret_cast<uint4*>(to + part / 8 * 64 * 128 + r * 128 + (part % 8 ^ r % 8) * 16) = v;
    }
    fence_async_shared();
}

// Starts the scores of a tile.
DEVICE void start_scores(f32 (&scores)[TILE_K / 2], const u8* q, const u8* k) {
    wgmma_fence();
#pragma unroll
    for (i32 step = 0; step < DIM / 16; ++step) {
        const u64 left = wgmma_descriptor(q + step / 4 * 64 * 128 + step % 4 * 32);
        const u64 right = wgmma_descriptor(k + step / 4 * BLOCK_BYTES + step % 4 * 32);
        wgmma_ss<TILE_K, X>(scores, left, right, step > 0);
    }
    wgmma_commit();
}

// Starts adding powers times values of a tile.
DEVICE void start_sums(f32 (&o)[DIM / 2], const u32 (&powers)[TILE_K / 4], const u8* v) {
    wgmma_fence();
#pragma unroll
    for (i32 step = 0; step < TILE_K / 16; ++step) {
        const u32 a[4] = {powers[4 * step], powers[4 * step + 1], powers[4 * step + 2], powers[4 * step + 3]};
        wgmma_rs<DIM, X, true>(o, a, wgmma_descriptor(v + step * 2048, 1024, BLOCK_BYTES), true);
    }
    wgmma_commit();
}

// Sets the values of the keys first .. end of a tile to zero; all consumers call it for the same tile.
DEVICE void clear_values(u8* v, i32 first, i32 end) {
    const i32 parts = (end - first) * 8;
    for (i32 i = threadIdx.x - 128; i < COLUMN_BLOCKS * parts; i += 128 * CONSUMERS)
        *reinterpret_cast<uint4*>(v + i / parts * BLOCK_BYTES + first * 128 + i % parts * 16) = make_uint4(0, 0, 0, 0);
    fence_async_shared();
    barrier_sync(ALL_CONSUMERS, 128 * CONSUMERS);
}

// The scores of a tile become powers.
DEVICE void soften(f32 (&scores)[TILE_K / 2], RowPair& state, f32 (&shrink)[2], const Operands& o, const Work& work,
                   const KeyTiles<TILE_K>& tiles, i32 key, i32 row) {
    if constexpr (SOFTCAP) cap_scores(scores, o.scale, o.softcap);
    if (!tiles.whole(key)) {
        const Seen seen[2] = {seen_by(o, work.s, row), seen_by(o, work.s, row + 8)};
        hide_scores(scores, seen, key + 2 * static_cast<i32>(lane_id() % 4));
    }
    softmax_step<X>(scores, state, shrink, SOFTCAP ? 1.0f : o.scale * LOG2_E);
}

// Says that this warp has left a place of the ring.
DEVICE void leave(u64* free) {
    __syncwarp();
    if (lane_id() == 0) mbarrier_arrive(free);
}

DEVICE void consume(const Params& p, u8* smem) {
    const Operands& o = p.o;
    const Ring ring(smem);
    const i32 consumer = warp_id() / 4 - 1;
    const u32 my_turn = TURN + consumer;
    const u32 next_turn = TURN + (consumer + 1) % CONSUMERS;
    u8* const q = smem + consumer * Q_BYTES;
    Stage stage;
    // The first turn is the first consumer's.
    if (CONSUMERS > 1 && consumer == CONSUMERS - 1) barrier_arrive(next_turn, 256);

    for (i32 tile = blockIdx.x; tile < p.row_tiles * p.units; tile += gridDim.x) {
        const Work work(p, tile);
        if (!work.exists()) continue;
        const KeyTiles<TILE_K> tiles = work.tiles(o);
        // Rows of this consumer, the first of this thread's two.
        const i32 first_row = work.first_row + 64 * consumer;
        const i32 row = first_row + static_cast<i32>(threadIdx.x % 128 / 32 * 16 + lane_id() / 4);

        RowPair state;
        f32 sums[DIM / 2];
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) sums[i] = 0.0f;

        if (tiles.count > 0) {
            // Everybody has left the queries before, and sees the new ones.
            barrier_sync(OWN + consumer, 128);
            fetch_queries(q, o, work, first_row);
            barrier_sync(OWN + consumer, 128);

            f32 scores[TILE_K / 2];
            u32 powers[TILE_K / 4];
            f32 shrink[2];
            mbarrier_wait(ring.k_full + stage.number, stage.round);
            start_scores(scores, q, smem + K_AT + stage.number * TILE_BYTES);
            wgmma_wait<0>();
            wgmma_pin(scores);
            leave(ring.k_free + stage.number);
            i32 key = tiles.key(0);
            soften(scores, state, shrink, o, work, tiles, key, row);
            pack_powers<X>(powers, scores);
            if (key < tiles.begin) {
                mbarrier_wait(ring.v_full + stage.number, stage.round);
                clear_values(smem + V_AT + stage.number * TILE_BYTES, 0, tiles.begin - key);
            }

#pragma unroll 1
            for (i32 i = 1; i < tiles.count; ++i) {
                const Stage before = stage;
                stage.next();
                if (CONSUMERS > 1) barrier_sync(my_turn, 256);
                mbarrier_wait(ring.k_full + stage.number, stage.round);
                start_scores(scores, q, smem + K_AT + stage.number * TILE_BYTES);
                mbarrier_wait(ring.v_full + before.number, before.round);
                start_sums(sums, powers, smem + V_AT + before.number * TILE_BYTES);
                if (CONSUMERS > 1) barrier_arrive(next_turn, 256);

                wgmma_wait<1>();
                wgmma_pin(scores);
                leave(ring.k_free + stage.number);
                key = tiles.key(i);
                soften(scores, state, shrink, o, work, tiles, key, row);
                wgmma_pin(scores);
                wgmma_wait_after<0>(state.sum[0] + state.sum[1]);
                wgmma_pin(sums);
                leave(ring.v_free + before.number);
                scale_rows(sums, shrink);
                pack_powers<X>(powers, scores);
            }

            u8* const v = smem + V_AT + stage.number * TILE_BYTES;
            mbarrier_wait(ring.v_full + stage.number, stage.round);
            if (key + TILE_K > tiles.end) clear_values(v, tiles.end - key, TILE_K);
            start_sums(sums, powers, v);
            wgmma_wait<0>();
            wgmma_pin(sums);
            leave(ring.v_free + stage.number);
            stage.next();
        }

        f32 inverse[2];
        finish_rows(state, inverse);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (row + 8 * h > work.last_row) continue;
            X* const to = static_cast<X*>(o.out) + out_place(o, work.s, work.head, row + 8 * h);
            store_row<X, HEAD_DIM>(to, sums, h, inverse[h], true);
        }
    }
    // The last turn is taken by nobody else.
    if (CONSUMERS > 1 && consumer == 0) barrier_sync(my_turn, 256);
}

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    if (threadIdx.x == 0) {
        const Ring ring(smem);
        for (i32 i = 0; i < STAGES; ++i) {
            mbarrier_init(ring.k_full + i, 1);
            mbarrier_init(ring.v_full + i, 1);
            mbarrier_init(ring.k_free + i, 4 * CONSUMERS);
            mbarrier_init(ring.v_free + i, 4 * CONSUMERS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    grid_wait();
    // A single consumer has as many registers as a thread may have.
    if (warp_id() < 4) {
        if constexpr (CONSUMERS == 2) registers_shrink<24>();
        if constexpr (CONSUMERS == 3) registers_shrink<32>();
        if (threadIdx.x == 0) produce(p, smem);
    } else {
        if constexpr (CONSUMERS == 2) registers_grow<240>();
        if constexpr (CONSUMERS == 3) registers_grow<160>();
        consume(p, smem);
    }
}
