// out = act(x w^T + bias) + residual for weights that are codes in groups on the matrix products of warpgroups (sm_90a);
// gated too. See `epilogue.cuh`.
//
// x: [m, k] as `quant_wgmma_x.cu` lays it out, type T   w: [n, k], CODE   out: [m, n], or [m, n / 2] if gated
//
// Weights are the left operand: 64 rows of them a consumer, decoded in the registers of the lane that reads them
// (`pairs.cuh`); the TILE_N rows of x of a tile are the right one, in shared memory. The order of k is free as long as
// both have it: x was put into that of the decoded words (`quant_wgmma.cuh`). Blocks stay and walk over tiles of 128 rows
// of weights. Roles:
//
//   producer (a thread)          has the copy engine bring stages of 128 along k to a ring of STAGES: x in columns of 64,
//                                128-byte swizzled, packed weights in the same halves as they are. It runs ahead into the
//                                next tile.
//   consumers (two warpgroups)   decode the next slice of a stage while products of the slice before are under way.
//                                Products of fields and x are exact; those of a group, or of a stage if its group is
//                                longer, have sums of their own, which are added with the scale of their row: a thread
//                                has two rows of weights. Meanwhile the other consumer multiplies.
//
// Of a gated tile the 16 rows of a warp are eight gates and the eight rows that they scale, so that it has 64 columns of
// the result. Results go through shared memory, 32 rows of x at a time, so that columns lie together; each consumer ends
// its own.
//
// Two blocks of a CLUSTER take neighbouring rows of weights and the same rows of x: each brings one half of x to both, which
// relieves the second-level cache. Where tiles are few each block has one tile and one slice of k; the last slice adds
// the sums of the others in order.
//
// SCALE: the type of scales. PARTS = 3: x of f32 is a sum of three bf16, each multiplied with the same decoded weights.
//
// SASS: HGMMA UTMALDG SYNCS
#include "cuda/include/wgmma.cuh"
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/quant_rows.cuh"
#include "ops/matmul/quant_wgmma.cuh"
#include "ops/matmul/tiles.cuh"
#include "quant/codes.cuh"

struct Params {
    TensorMap x_map;  // [PARTS * rows, 128 * steps] in boxes [TILE_N / CLUSTER, 64]
    TensorMap w_map;  // words of fields of the stored tensor, in boxes of 64 rows and 64 columns
    TensorMap up_map; // of what the gates scale, if gated
    WeightRows w;
    WeightRows up;
    Epilogue e;
    float4* sums;  // of slices but the last
    u32* counters; // slices whose sums have come, one for each consumer of a tile
    i32 steps;     // stages along k
    i32 groups;
    i32 slices;
    i32 slice_steps; // stages along k in a slice
    u32 gated;
    i32 pad[15];
};

constexpr i32 CONSUMERS = 2;
constexpr i32 THREADS = 128 * (1 + CONSUMERS);
constexpr i32 GROUP = 8; // tiles that follow each other along the rows of x
constexpr i32 SLICES = 4 / EIGHTS; // of a stage: what is decoded at once
constexpr i32 PRODUCTS = 2 * EIGHTS; // of 16 along k in a slice
constexpr i32 READ = EIGHTS * BITS; // bytes of a row that a lane decodes at once

// Shared memory: the ring, results of each consumer, barriers. Of a stage first x, then weights.
constexpr i32 X_HALF = TILE_N * 128;
constexpr i32 X_BYTES = PARTS * 2 * X_HALF;
constexpr i32 W_PITCH = 64 * BITS / 8;
constexpr i32 W_BOX = 64 * W_PITCH;
constexpr i32 STAGE_BYTES = X_BYTES + 4 * W_BOX;
constexpr i32 PIECE = 32;  // rows of x whose results are in shared memory
constexpr i32 PITCH = 68;  // of such a row
constexpr i32 RESULTS_AT = STAGES * STAGE_BYTES;
constexpr i32 BARRIERS_AT = RESULTS_AT + CONSUMERS * PIECE * PITCH * 4;

constexpr u32 SHARE = 1; // named barriers, one for each consumer

struct Barriers {
    u64 full[STAGES];
    u64 empty[STAGES];
};

// A tile and a slice of k. Tiles of the blocks of a cluster are one.
struct Work {
    i32 tile, slice, first_step, steps;
    i32 rank; // of this block in its cluster
    i32 first_row; // of x
    i32 first_col; // of the result

    DEVICE Work(const Params& p, i32 item) {
        const i32 across = tiles_across(p), down = ceil_div(p.e.rows, TILE_N);
        tile = item % (across * down);
        slice = item / (across * down);
        first_step = slice * p.slice_steps;
        steps = min_of(p.slice_steps, p.steps - first_step);
        const Place place = place_of<GROUP>(tile, down, across);
        rank = CLUSTER > 1 ? static_cast<i32>(cluster_rank()) : 0;
        first_row = place.down * TILE_N;
        first_col = (place.across * CLUSTER + rank) * (p.gated != 0 ? 64 : 128);
    }
    static DEVICE i32 first() { return static_cast<i32>(blockIdx.x) / CLUSTER; }
    static DEVICE i32 stride() { return static_cast<i32>(gridDim.x) / CLUSTER; }
    static DEVICE i32 tiles_across(const Params& p) { return ceil_div(p.e.cols, (p.gated != 0 ? 64 : 128) * CLUSTER); }
    static DEVICE i32 count(const Params& p) { return tiles_across(p) * ceil_div(p.e.rows, TILE_N) * p.slices; }
};

// Brings the stages of all tiles.
DEVICE void produce(const Params& p, u8* smem, Barriers& bars) {
    Turn<STAGES> turn;
    for (i32 item = Work::first(); item < Work::count(p); item += Work::stride()) {
        const Work work(p, item);
        const i32 row = p.w.first + work.first_col;
        for (i32 step = 0; step < work.steps; ++step, turn.next()) {
            mbarrier_wait(&bars.empty[turn.slot], turn.parity ^ 1);
            u64* const full = &bars.full[turn.slot];
            mbarrier_arrive_expect(full, STAGE_BYTES);
            u8* const x = smem + turn.slot * STAGE_BYTES;
            u8* const w = x + X_BYTES;
#pragma unroll
            for (i32 half = 0; half < 2; ++half) {
                const i32 col = (work.first_step + step) * STEP + half * 64;
#pragma unroll
                for (i32 part = 0; part < PARTS; ++part) {
                    u8* const to = x + (2 * part + half) * X_HALF + work.rank * (X_HALF / CLUSTER);
                    const i32 x_row = part * p.e.rows + work.first_row + work.rank * (TILE_N / CLUSTER);
                    if constexpr (CLUSTER == 1) {
                        tma_load_2d(to, &p.x_map, full, col, x_row);
                    } else {
                        tma_load_2d_multicast(to, &p.x_map, full, col, x_row, (1 << CLUSTER) - 1);
                    }
                }
                const i32 word = col / (32 / BITS);
                tma_load_2d(w + 2 * half * W_BOX, &p.w_map, full, word, row);
                if (p.gated != 0) {
                    tma_load_2d(w + (2 * half + 1) * W_BOX, &p.up_map, full, word, p.up.first + work.first_col);
                } else {
                    tma_load_2d(w + (2 * half + 1) * W_BOX, &p.w_map, full, word, row + 64);
                }
            }
        }
    }
}

// Scales and zero points of a stage of one row, as loaded: they are unpacked where they are used, so that nobody waits
// for them.
struct Notes {
    SCALE scale[GROUPS];
    u32 zero[GROUPS]; // words of several rows
};

DEVICE void load_notes(Notes& to, const Row& row, const WeightRows& w, i32 groups, i32 step) {
#pragma unroll
    for (i32 i = 0; i < GROUPS; ++i) {
        const i32 group = group_of<STEP>(w, groups, step, i);
        to.scale[i] = static_cast<const SCALE*>(row.scales)[group];
        to.zero[i] = ZERO ? static_cast<const u32*>(row.zeros)[group] : 0;
    }
}
DEVICE PairZero zero_of(u32 word, i32 field) {
    return CODE::pair_zero<T>(static_cast<u32>(ZERO ? code_field<BITS>(word, field) : CODE::CENTRE));
}

using Fragments = u32[PRODUCTS][4];

// Decodes slice SLICE of the stage at offset `stage`; `w` are weights at the place of this lane in its two rows. Returns
// something >= 0, or NaN, that is known when all of it is.
template <i32 SLICE> DEVICE f32 decode(Fragments& to, const u8* const (&w)[2], i32 stage, const Notes (&notes)[2],
                                        const i32 (&field)[2]) {
    constexpr i32 HALF = SLICE * EIGHTS / 2, GROUP_OF = SLICE * GROUPS / SLICES;
    constexpr i32 AT = HALF * 2 * W_BOX + (EIGHTS == 1 ? SLICE % 2 * 4 * READ : 0);
    u32 low[READ / 4], high[READ / 4], all = 0;
    load_words(low, w[0] + stage + AT);
    load_words(high, w[1] + stage + AT);
    const PairZero low_zero = zero_of(notes[0].zero[GROUP_OF], field[0]);
    const PairZero high_zero = zero_of(notes[1].zero[GROUP_OF], field[1]);
#pragma unroll
    for (i32 i = 0; i < EIGHTS; ++i) {
        u32 a[4], b[4];
        CODE::pairs<T, ZERO>(a, low + i * BITS / 4, low_zero);
        CODE::pairs<T, ZERO>(b, high + i * BITS / 4, high_zero);
#pragma unroll
        for (i32 j = 0; j < 2; ++j) {
            u32(&product)[4] = to[2 * i + j];
            product[0] = a[2 * j], product[1] = b[2 * j], product[2] = a[2 * j + 1], product[3] = b[2 * j + 1];
            all |= product[0] | product[1] | product[2] | product[3];
        }
    }
    return __uint_as_float(all & 0x7fffffffu);
}

// Starts the products of slice SLICE of a stage, whose x is at `x`.
template <i32 SLICE> DEVICE void multiply(f32 (&part)[TILE_N / 2], const Fragments& a, u64 x) {
    constexpr i32 HALF = SLICE * EIGHTS / 2, FIRST = EIGHTS == 1 ? SLICE % 2 * PRODUCTS : 0;
    constexpr bool BEGINS = SLICE % (SLICES / GROUPS) == 0;
    wgmma_fence();
#pragma unroll
    for (i32 i = 0; i < PRODUCTS; ++i)
#pragma unroll
        for (i32 summand = 0; summand < PARTS; ++summand)
            wgmma_rs<TILE_N, T>(part, a[i], x + ((2 * summand + HALF) * X_HALF >> 4) + 2 * (FIRST + i),
                                !BEGINS || i + summand > 0);
    wgmma_commit();
}

// What a consumer keeps while it works on a tile.
struct Consumer {
    f32 sum[1][TILE_N / 2];
    f32 part[TILE_N / 2]; // of the present group
    Fragments a[2];
    Notes now[2], next[2];
    const u8* w[2];
    i32 field[2]; // of the rows in words of zero points

    // Slice SLICE and those that follow in a stage. `stage` and `after` are offsets of this stage and the next.
    template <i32 SLICE> DEVICE void slices(u64 x, i32 stage, i32 after, u64* full, u32 parity, bool last) {
        multiply<SLICE>(part, a[SLICE % 2], x + (stage >> 4));
        wgmma_wait<1>();
        f32 known = 0.0f;
        if constexpr (SLICE + 1 < SLICES) {
            known = decode<SLICE + 1>(a[(SLICE + 1) % 2], w, stage, now, field);
        } else if (!last) {
            mbarrier_wait(full, parity);
            known = decode<0>(a[0], w, after, next, field);
        }
        if constexpr ((SLICE + 1) * GROUPS % SLICES == 0) {
            wgmma_wait_after<0>(known);
            wgmma_pin(part);
            constexpr i32 GROUP_OF = SLICE * GROUPS / SLICES;
            const f32 scale[2] = {to_f32(now[0].scale[GROUP_OF]), to_f32(now[1].scale[GROUP_OF])};
#pragma unroll
            for (i32 i = 0; i < TILE_N / 2; ++i) sum[0][i] = fmaf(scale[i / 2 % 2], part[i], sum[0][i]);
        }
        if constexpr (SLICE + 1 < SLICES) slices<SLICE + 1>(x, stage, after, full, parity, last);
    }
};

// Gives a stage back to the producers of all blocks that fill it; once for each warp.
DEVICE void give_back(u64* empty) {
    const u32 lane = lane_id();
    __syncwarp();
    if constexpr (CLUSTER == 1) {
        if (lane == 0) mbarrier_arrive(empty);
    } else {
        if (lane < CLUSTER) mbarrier_arrive_remote(empty, lane);
    }
}

// Ends the results of consumer `number`.
DEVICE void finish(const Params& p, const f32 (&sum)[TILE_N / 2], f32* results, const Work& work, i32 number) {
    const i32 thread = static_cast<i32>(threadIdx.x) % 128, lane = thread % 32;
    const i32 fours = p.gated != 0 ? 8 : 16;
    f32* const mine = results + lane % 4 * 2 * PITCH + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (i32 piece = 0; piece < TILE_N / PIECE; ++piece) {
        barrier_sync(SHARE + number, 128);
#pragma unroll
        for (i32 i = 0; i < PIECE / 2; ++i)
            mine[(i / 4 * 8 + i % 2) * PITCH + i / 2 % 2 * 8] = sum[piece * (PIECE / 2) + i];
        barrier_sync(SHARE + number, 128);
#pragma unroll 1
        for (i32 at = thread; at < PIECE * fours; at += 128) {
            const i32 four = at % fours, row = work.first_row + piece * PIECE + at / fours;
            const i32 col = work.first_col + (number * fours + four) * 4;
            const i32 place = p.gated != 0 ? four / 2 * 16 + four % 2 * 4 : four * 4;
            const f32* const from = results + at / fours * PITCH + place;
            f32 product[4], up[4];
#pragma unroll
            for (i32 i = 0; i < 4; ++i) product[i] = from[i], up[i] = p.gated != 0 ? from[8 + i] : 0.0f;
            if (p.gated != 0) {
                emit<4, true>(p.e, row, col, product, up);
            } else {
                emit<4>(p.e, row, col, product);
            }
        }
    }
}

DEVICE void consume(const Params& p, u8* smem, Barriers& bars, i32 number) {
    const i32 lane = static_cast<i32>(lane_id()), warp = static_cast<i32>(threadIdx.x) / 32 % 4;
    const bool gated = p.gated != 0;
    // The rows of a thread in a stage: of a gated tile gates come first, then what they scale.
    const i32 low = gated ? number * 32 + warp * 8 + lane / 4 : number * 64 + warp * 16 + lane / 4;
    const i32 high = gated ? low + 64 : low + 8;
    const u64 x = wgmma_descriptor(smem);
    f32* const results = reinterpret_cast<f32*>(smem + RESULTS_AT) + number * PIECE * PITCH;

    Consumer c;
    const i32 at[2] = {low, high};
#pragma unroll
    for (i32 i = 0; i < 2; ++i)
        c.w[i] = smem + X_BYTES + at[i] / 64 * W_BOX + at[i] % 64 * W_PITCH + lane % 4 * READ;

    Turn<STAGES> turn;
    for (i32 item = Work::first(); item < Work::count(p); item += Work::stride()) {
        const Work work(p, item);
        // Beyond the last row the last.
        const Row rows[2] = {row_at(p.w, min_of(work.first_col + low, p.e.cols - 1)),
                             row_at(gated ? p.up : p.w, min_of(work.first_col + (gated ? low : high), p.e.cols - 1))};
        const auto load = [&](i32 step) {
            const i32 from = work.first_step + min_of(step, work.steps - 1);
            load_notes(c.next[0], rows[0], p.w, p.groups, from);
            load_notes(c.next[1], rows[1], gated ? p.up : p.w, p.groups, from);
        };
        load(0);
#pragma unroll
        for (i32 i = 0; i < 2; ++i) c.field[i] = rows[i].field;
#pragma unroll
        for (i32 i = 0; i < TILE_N / 2; ++i) c.sum[0][i] = c.part[i] = 0.0f;
        mbarrier_wait(&bars.full[turn.slot], turn.parity);
        decode<0>(c.a[0], c.w, turn.slot * STAGE_BYTES, c.next, c.field);
#pragma unroll 1
        for (i32 step = 0; step < work.steps; ++step) {
            const i32 slot = turn.slot;
            turn.next();
            c.now[0] = c.next[0], c.now[1] = c.next[1];
            load(step + 1);
            c.slices<0>(x, slot * STAGE_BYTES, turn.slot * STAGE_BYTES, &bars.full[turn.slot], turn.parity,
                        step + 1 == work.steps);
            give_back(&bars.empty[slot]);
        }
        const i32 place = work.tile * CONSUMERS + number;
        float4* const sums = p.sums + static_cast<i64>(place) * (p.slices - 1) * (TILE_N / 8) * 128;
        if (p.slices > 1 && !join_last(c.sum, sums, p.counters + place, work.slice, p.slices, SHARE + number)) continue;
        finish(p, c.sum[0], results, work, number);
    }
}

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    Barriers& bars = *reinterpret_cast<Barriers*>(smem + BARRIERS_AT);
    if (threadIdx.x == 0) {
        for (u64& bar : bars.full) mbarrier_init(&bar, 1);
        for (u64& bar : bars.empty) mbarrier_init(&bar, 4 * CONSUMERS * CLUSTER);
        mbarrier_init_fence();
        tensor_map_prefetch(&p.x_map);
        tensor_map_prefetch(&p.w_map);
    }
    if constexpr (CLUSTER > 1) {
        cluster_sync();
    } else {
        __syncthreads();
    }
    grid_wait();
    const i32 warp = static_cast<i32>(warp_id());
    if (warp < 4) {
        registers_shrink<40>();
        if (warp == 0 && elect_one()) produce(p, smem, bars);
        __syncwarp();
    } else {
        registers_grow<232>();
        consume(p, smem, bars, warp / 4 - 1);
    }
    // Blocks of a cluster write to each other's memory: none may end before the other.
    if constexpr (CLUSTER > 1) cluster_sync();
}
