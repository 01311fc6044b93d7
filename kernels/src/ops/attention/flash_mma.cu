// Attention on tensor cores by mma (sm_80 and later), queries, keys and values of one 16-bit type, or keys and values of CODES.
//
// A block of four warps takes a tile of query rows of a key head of a sequence and goes over tiles of TILE_K keys with the
// online softmax. A warp has 16 BLOCKS rows: their scores, powers and sums stay in registers, where the scores of a product
// already lie as the next one takes its left operand.
//
//   WARPS_K = 1: each warp has rows of its own and sees all keys of a tile. Many queries.
//   WARPS_K = 4: all warps have the same 16 rows and a quarter of the keys each; their sums meet at the end. Few queries, whose
//     keys are also split among `splits` blocks, see partial.cuh.
//
// Tiles of keys and of values take turns in a ring of SLOTS places in shared memory, which cp.async fills ahead, in parts of 16
// bytes: rows of pages are found through the block table as they are fetched. The rows of a tile are laid out so that the eight
// rows that ldmatrix reads at once lie in different banks: parts are permuted by their row where a row spans all banks, and rows
// have an odd number of parts otherwise. Heads are padded with zeros to a multiple of 16.
//
// Only tiles on the border of what rows see are masked. Rows of values that no row sees there are zeros, not garbage times zero.
//
// CODES: keys and values are codes of 8 bits, each head with its scale behind it, and X is bf16, which holds each code exactly. They go
// through registers and come to shared memory as bf16: a tile is on its way while the one before is multiplied, where there are
// registers for it. Scales of keys multiply scores, those of values powers.
//
// X: bf16 or f16; PAGE: slots of a page, 0 for packed keys; ALIGNED: whether rows lie at multiples of 16 bytes; SOFTCAP; RANGES:
// see sequence.cuh.
// Grid: (tiles of rows x splits, key heads, sequences); tiles beyond a sequence's rows end at once.
// SASS: HMMA.16816.F32 LDSM LDSM.16.MT88 MUFU.EX2
#include "ops/attention/codes.cuh"
#include "ops/attention/partial.cuh"

constexpr i32 THREADS = 128;
constexpr i32 WARPS_Q = 4 / WARPS_K;
constexpr i32 TILE_Q = 16 * BLOCKS * WARPS_Q;
// Keys of a tile that a warp takes.
constexpr i32 KEYS = TILE_K / WARPS_K;
constexpr i32 DIM = ceil_div(HEAD_DIM, 16) * 16;

// Parts of 16 bytes: of a row, and from one row to the next in shared memory.
constexpr i32 PARTS = DIM / 8;
constexpr bool PERMUTED = PARTS % 8 == 0;
constexpr i32 PITCH = PERMUTED ? PARTS : PARTS | 1;
constexpr i32 SLOT_BYTES = TILE_K * PITCH * 16;
constexpr i32 RING_AT = TILE_Q * PITCH * 16;
// CODES: scales of the rows of each slot.
constexpr i32 SCALES_AT = RING_AT + SLOTS * SLOT_BYTES;
static_assert(!CODES || SLOTS == 2, "values come to shared memory right before they are used");
// Queries stay in registers where these suffice.
constexpr bool KEEP_Q = BLOCKS * DIM <= 128;

DEVICE i32 place(i32 row, i32 part) { return (row * PITCH + (PERMUTED ? part ^ (row & 7) : part)) * 16; }

// Fetches 8 elements of a row from `column` on; zeros beyond the head and for absent rows, whose `from` is any valid address.
DEVICE void fetch_part(u8* to, const X* from, i32 column, bool exists) {
    if constexpr (ALIGNED) {
        const bool inside = HEAD_DIM % 16 == 0 || column < HEAD_DIM;
        cp_async_16(to, inside ? from + column : from, exists && inside ? 16 : 0);
    } else {
        u32 words[4] = {};
        if (exists) {
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (column + i < HEAD_DIM) words[i / 2] |= static_cast<u32>(from[column + i].bits) << (i % 2 * 16);
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

DEVICE void fetch_queries(u8* to, const Operands& p, const Sequence& s, i32 head, i32 first_row, i32 last_row) {
    for (i32 i = threadIdx.x; i < TILE_Q * PARTS; i += THREADS) {
        const i32 row = i / PARTS;
        const i32 part = i % PARTS;
        const i64 at = q_place(p, s, head, min_of(first_row + row, last_row));
        fetch_part(to + place(row, part), static_cast<const X*>(p.q) + at, 8 * part, first_row + row <= last_row);
    }
}

// The TILE_K rows from key `key` on, of keys or of values.
template <bool VALUES>
DEVICE void fetch_rows(u8* to, const Operands& p, const Sequence& s, const KeyTiles<TILE_K>& tiles, i32 head, i32 key) {
    const X* const from = static_cast<const X*>(VALUES ? p.v : p.k);
    // Two blocks of long heads leave no registers for the places of several parts.
#pragma unroll(BLOCKS == 2 && HEAD_DIM > 64 ? 1 : 4)
    for (i32 first = 0; first < TILE_K * PARTS; first += THREADS) {
        const i32 i = first + static_cast<i32>(threadIdx.x);
        if (TILE_K * PARTS % THREADS != 0 && i >= TILE_K * PARTS) break;
        const i32 row = i / PARTS;
        const i32 part = i % PARTS;
        const bool exists = key + row < tiles.end && (!VALUES || key + row >= tiles.begin);
        const Slot slot = slot_of(p, s, min_of(key + row, s.kv_len - 1), PAGE);
        const i64 at = VALUES ? v_place(p, slot, head) : k_place(p, slot, head);
        fetch_part(to + place(row, part), from + at, 8 * part, exists);
    }
}

// The TILE_K rows from key `key` on as codes: what a thread has of them on the way from memory to a slot, one of CHUNKS chunks.
struct Codes {
    static constexpr i32 ALL = ceil_div(TILE_K * PARTS, THREADS);
    // Whether registers hold all of them during a product.
    static constexpr bool AHEAD = BLOCKS * DIM <= 128 && ALL <= (WARPS_K == 1 ? 4 : 8);
    static constexpr i32 EACH = AHEAD ? ALL : min_of(ALL, 4);
    static constexpr i32 CHUNKS = ceil_div(ALL, EACH);
    u32 words[EACH][2];
    f32 scale; // of row threadIdx.x

    template <bool VALUES>
    DEVICE void load(const Operands& p, const Sequence& s, const KeyTiles<TILE_K>& tiles, i32 head, i32 key, i32 chunk) {
        const auto row_at = [&](i32 row) {
            const bool exists = key + row < tiles.end && (!VALUES || key + row >= tiles.begin);
            const Slot slot = slot_of(p, s, min_of(key + row, s.kv_len - 1), PAGE);
            const i64 at = VALUES ? v_place(p, slot, head) : k_place(p, slot, head);
            return exists ? static_cast<const u8*>(VALUES ? p.v : p.k) + at : nullptr;
        };
#pragma unroll
        for (i32 i = 0; i < EACH; ++i) {
            const i32 index = (chunk * EACH + i) * THREADS + static_cast<i32>(threadIdx.x), column = index % PARTS * 8;
            words[i][0] = words[i][1] = 0;
            if (index >= TILE_K * PARTS) continue;
            const u8* const row = row_at(index / PARTS);
            if (row == nullptr) continue;
            if (column < HEAD_DIM) words[i][0] = *reinterpret_cast<const u32*>(row + column);
            if (column + 4 < HEAD_DIM) words[i][1] = *reinterpret_cast<const u32*>(row + column + 4);
        }
        scale = 0.0f;
        const u8* const own = chunk == 0 && threadIdx.x < TILE_K ? row_at(threadIdx.x) : nullptr;
        if (own != nullptr) scale = *reinterpret_cast<const f32*>(own + HEAD_DIM);
    }
    DEVICE void keep(u8* slot, f32* scales, i32 chunk) const {
#pragma unroll
        for (i32 i = 0; i < EACH; ++i) {
            const i32 index = (chunk * EACH + i) * THREADS + static_cast<i32>(threadIdx.x);
            if (index >= TILE_K * PARTS) continue;
            u32 low[2], high[2];
            open_codes(low, words[i][0]);
            open_codes(high, words[i][1]);
            u8* const to = slot + place(index / PARTS, index % PARTS);
            *reinterpret_cast<uint4*>(to) = make_uint4(low[0], low[1], high[0], high[1]);
        }
        if (chunk == 0 && threadIdx.x < TILE_K) scales[threadIdx.x] = scale;
    }
};

// The left operand of 16 rows from `row` on, columns 16 step on.
DEVICE void load_queries(u32 (&a)[4], const u8* q, i32 row, i32 step) {
    const i32 lane = lane_id();
    ldmatrix_x4(a, q + place(row + lane % 16, 2 * step + lane / 16));
}

KERNEL(THREADS, 2)(const __grid_constant__ Operands p) {
    SHARED_MEMORY(smem);
    const i32 lane = lane_id();
    const i32 warp = warp_id();
    const i32 warp_row = warp / WARPS_K * 16 * BLOCKS;
    const i32 warp_key = warp % WARPS_K * KEYS;
    grid_wait();

    const i32 part = blockIdx.x % p.splits;
    // Late rows see most keys: they come first.
    const i32 row_tiles = gridDim.x / p.splits;
    const i32 row_tile = row_tiles - 1 - static_cast<i32>(blockIdx.x) / p.splits;
    const i32 head = blockIdx.y;
    const Sequence s = read_sequence(p, blockIdx.z);
    const i32 first_row = row_tile * TILE_Q;
    if (first_row >= rows_of(p, s)) return;
    const i32 last_row = min_of(first_row + TILE_Q, rows_of(p, s)) - 1;

    const KeyTiles<TILE_K> tiles(p, s, first_row, last_row);
    const i32 each = tiles_of_part(tiles.count, p.splits);
    const i32 parts = max_of(ceil_div(tiles.count, each), 1);
    if (part >= parts) return;
    const i32 first_tile = part * each;
    const i32 count = min_of(tiles.count - first_tile, each);

    // The ring: keys of tile 0, its values, keys of tile 1...
    const auto slot = [&](i32 i) { return smem + RING_AT + i % SLOTS * SLOT_BYTES; };
    const auto scales = [&](i32 i) { return reinterpret_cast<f32*>(smem + SCALES_AT) + i % SLOTS * TILE_K; };
    const auto fetch = [&](i32 i) {
        if (!CODES && i < 2 * count) {
            const i32 key = tiles.key(first_tile + i / 2);
            if (i % 2 == 0) {
                fetch_rows<false>(slot(i), p, s, tiles, head, key);
            } else {
                fetch_rows<true>(slot(i), p, s, tiles, head, key);
            }
        }
        cp_async_commit();
    };
    fetch_queries(smem, p, s, head, first_row, last_row);
    cp_async_commit();
#pragma unroll
    for (i32 i = 0; i < SLOTS - 1; ++i) fetch(i);
    // CODES: a slot is asked for by `send`, and filled by `receive`, a product later where registers allow it.
    [[maybe_unused]] Codes codes;
    const auto receive = [&](i32 i, i32 chunk) { codes.keep(slot(i), scales(i), chunk); };
    const auto send = [&](i32 i) {
        const i32 key = tiles.key(first_tile + i / 2);
#pragma unroll 1
        for (i32 chunk = 0; chunk < Codes::CHUNKS; ++chunk) {
            if (i % 2 == 0) {
                codes.load<false>(p, s, tiles, head, key, chunk);
            } else {
                codes.load<true>(p, s, tiles, head, key, chunk);
            }
            if (!Codes::AHEAD) receive(i, chunk);
        }
    };
    if constexpr (CODES) {
        if (count > 0) {
            send(0);
            if (Codes::AHEAD) receive(0, 0);
        }
    }

    u32 q[KEEP_Q ? BLOCKS : 1][KEEP_Q ? DIM / 16 : 1][4];
    if constexpr (KEEP_Q) {
        cp_async_wait<SLOTS - 1>();
        __syncthreads();
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
#pragma unroll
            for (int step = 0; step < DIM / 16; ++step) load_queries(q[b][step], smem, warp_row + 16 * b, step);
        }
    }

    RowPair state[BLOCKS];
    Seen seen[BLOCKS][2];
    f32 o[BLOCKS][DIM / 2];
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
#pragma unroll
        for (int h = 0; h < 2; ++h) seen[b][h] = seen_by(p, s, first_row + warp_row + 16 * b + lane / 4 + 8 * h);
#pragma unroll
        for (int i = 0; i < DIM / 2; ++i) o[b][i] = 0.0f;
    }
    const f32 factor = SOFTCAP ? 1.0f : p.scale * LOG2_E;

#pragma unroll 1
    for (i32 tile = 0; tile < count; ++tile) {
        // Keys are there, and everybody has left the slot that is filled next.
        cp_async_wait<SLOTS - 2>();
        __syncthreads();
        fetch(2 * tile + SLOTS - 1);
        const i32 key = tiles.key(first_tile + tile);
        if constexpr (CODES) send(2 * tile + 1);

        f32 scores[BLOCKS][KEYS / 2] = {};
        const u8* const k = slot(2 * tile);
#pragma unroll
        for (int step = 0; step < DIM / 16; ++step) {
            u32 a[BLOCKS][4];
#pragma unroll
            for (int b = 0; b < BLOCKS; ++b) {
                if constexpr (KEEP_Q) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) a[b][i] = q[b][step][i];
                } else {
                    load_queries(a[b], smem, warp_row + 16 * b, step);
                }
            }
#pragma unroll
            for (int j = 0; j < KEYS / 16; ++j) {
                u32 columns[4];
                const i32 row = warp_key + 16 * j + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(columns, k + place(row, 2 * step + lane / 8 % 2));
#pragma unroll
                for (int b = 0; b < BLOCKS; ++b) {
                    f32(&left)[4] = *reinterpret_cast<f32(*)[4]>(&scores[b][8 * j]);
                    f32(&right)[4] = *reinterpret_cast<f32(*)[4]>(&scores[b][8 * j + 4]);
                    mma_16816<X>(left, a[b], columns[0], columns[1]);
                    mma_16816<X>(right, a[b], columns[2], columns[3]);
                }
            }
        }

        u32 powers[BLOCKS][KEYS / 4];
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            if constexpr (CODES) scale_columns(scores[b], scales(2 * tile) + warp_key);
            if constexpr (SOFTCAP) cap_scores(scores[b], p.scale, p.softcap);
            if (!tiles.whole(key)) hide_scores(scores[b], seen[b], key + warp_key + 2 * (lane % 4));
            f32 shrink[2];
            softmax_step<X>(scores[b], state[b], shrink, factor);
            scale_rows(o[b], shrink);
            if constexpr (!CODES) pack_powers<X>(powers[b], scores[b]);
        }

        if (CODES && Codes::AHEAD) receive(2 * tile + 1, 0);
        cp_async_wait<SLOTS - 2>();
        __syncthreads();
        fetch(2 * tile + SLOTS);
        if constexpr (CODES) {
            if (tile + 1 < count) send(2 * tile + 2);
#pragma unroll
            for (int b = 0; b < BLOCKS; ++b) {
                scale_columns(scores[b], scales(2 * tile + 1) + warp_key);
                pack_powers<X>(powers[b], scores[b]);
            }
        }

        const u8* const v = slot(2 * tile + 1);
#pragma unroll
        for (int step = 0; step < KEYS / 16; ++step) {
#pragma unroll
            for (int j = 0; j < DIM / 16; ++j) {
                u32 columns[4];
                const i32 row = warp_key + 16 * step + lane / 8 % 2 * 8 + lane % 8;
                ldmatrix_x4_trans(columns, v + place(row, 2 * j + lane / 16));
#pragma unroll
                for (int b = 0; b < BLOCKS; ++b) {
                    const u32(&a)[4] = *reinterpret_cast<const u32(*)[4]>(&powers[b][4 * step]);
                    f32(&left)[4] = *reinterpret_cast<f32(*)[4]>(&o[b][8 * j]);
                    f32(&right)[4] = *reinterpret_cast<f32(*)[4]>(&o[b][8 * j + 4]);
                    mma_16816<X>(left, a, columns[0], columns[1]);
                    mma_16816<X>(right, a, columns[2], columns[3]);
                }
            }
        }
        if (CODES && Codes::AHEAD && tile + 1 < count) receive(2 * tile + 2, 0);
    }
    cp_async_wait<0>();

    X* const out = static_cast<X*>(p.out);
    if constexpr (WARPS_K == 1) {
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            f32 inverse[2];
            finish_rows(state[b], inverse);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const i32 row = first_row + warp_row + 16 * b + lane / 4 + 8 * h;
                if (row <= last_row) {
                    X* const to = out + out_place(p, s, head, row);
                    store_row<X, HEAD_DIM>(to, o[b], h, inverse[h], ALIGNED);
                }
            }
        }
    } else {
        // Sums of the warps, in place of the ring: [warp][row][DIM], then [warp][row] largest scores and sums of powers.
        __syncthreads();
        f32* const sums = reinterpret_cast<f32*>(smem);
        f32* const stats = sums + 4 * 16 * DIM;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const i32 row = warp * 16 + lane / 4 + 8 * h;
            const f32 sum = warp_sum<4>(state[0].sum[h]);
            if (lane % 4 == 0) stats[2 * row] = state[0].most[h], stats[2 * row + 1] = sum;
#pragma unroll
            for (int j = 0; j < DIM / 8; ++j)
                *reinterpret_cast<float2*>(sums + row * DIM + 8 * j + 2 * (lane % 4)) =
                    make_float2(o[0][4 * j + 2 * h], o[0][4 * j + 2 * h + 1]);
        }
        __syncthreads();
        const i32 unit = (static_cast<i32>(blockIdx.z) * p.heads_kv + head) * row_tiles + row_tile;
        const i32 elements = (last_row - first_row + 1) * HEAD_DIM;
        for (i32 i = threadIdx.x; i < elements; i += THREADS) {
            const i32 row = i / HEAD_DIM;
            const i32 column = i % HEAD_DIM;
            f32 most = LEAST;
#pragma unroll
            for (int w = 0; w < 4; ++w) most = fmaxf(most, stats[2 * (16 * w + row)]);
            f32 sum = 0.0f;
            f32 value = 0.0f;
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const f32 weight = exp2_fast(stats[2 * (16 * w + row)] - most);
                sum = fmaf(weight, stats[2 * (16 * w + row) + 1], sum);
                value = fmaf(weight, sums[(16 * w + row) * DIM + column], value);
            }
            if (parts == 1) {
                out[out_place(p, s, head, first_row + row) + column] = from_f32<X>(sum > 0.0f ? value / sum : 0.0f);
            } else {
                f32* const to = partial_row(p, unit, part, row, TILE_Q);
                to[column] = value;
                if (column == 0) to[HEAD_DIM] = most, to[HEAD_DIM + 1] = sum;
            }
        }
        if (parts == 1 || !comes_last(p.counters + unit, parts, reinterpret_cast<u32*>(smem))) return;
        for (i32 i = threadIdx.x; i < elements; i += THREADS) {
            const f32 value = combine_parts(p, unit, parts, i / HEAD_DIM, TILE_Q, i % HEAD_DIM);
            out[out_place(p, s, head, first_row + i / HEAD_DIM) + i % HEAD_DIM] = from_f32<X>(value);
        }
    }
}
