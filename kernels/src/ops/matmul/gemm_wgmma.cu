// out = act(x w^T + bias) + residual with the matrix products of warpgroups (sm_90a), for x, w of one type X, of 16 bits or e4m3;
// gated too.
//
// x: [m, k] of X   w: [n, k] of X   out, residual: [m, n], or [m, n / 2] if GATED, of OUT   bias: any float   sums in f32
//
// Blocks stay and walk over the tiles of TILE_M x TILE_N products in an order that keeps shared operands in the second-level
// cache. All traffic with memory is the copy engine's, and roles are split:
//
//   producer (a thread)       brings stages of 128 bytes along k to a ring of STAGES, 128-byte swizzled as wgmma takes them
//   consumers (warpgroups)    multiply what is there and never wait for memory: while the products of a stage are under way
//                             the stage before is given back. They end their products in registers and leave them, 128
//                             bytes a row, in buffers
//   deliverers (a thread for  send full buffers to `out`, and make them ready again: for the next piece of `residual`, if
//   each consumer)            there is one, which consumers find in place of what they will write
//
// A consumer holds DOWN x 64 rows of a tile. Two consumers either share a tile of twice as many rows, which reads operands the
// least for each product: where k is long. Or they take turns with tiles (PINGPONG): one multiplies while the other ends its
// tile, and the order of stages in the ring is the order of their turns: where k is short beside what follows. The producer
// runs ahead into the next tile either way. Two blocks of a CLUSTER take tiles that lie one below the other: each brings one
// half of their common weights to both.
//
// Where tiles are few and k is long each block has one tile and one slice of k (SPLIT). Blocks of the last slices are the last
// to start; they wait for the sums of the others, add them in order and end the tile.
//
// Floats of 8 bits have scales (`scaled.cuh`), which the 128 of k in a stage share. A stage's products are summed apart and added,
// times their scales, to those of the tile, while the other consumer multiplies.
//
// A gated tile has TILE_N / 2 gates and the columns that they scale, so that a thread holds both. What lies beyond an operand
// comes as zeros, and what lies beyond the result is not written: every size is allowed. All rows begin at multiples of 16 bytes.
//
// SASS X=bf16: HGMMA UTMALDG UTMASTG
// SASS X=f16: HGMMA UTMALDG UTMASTG
// SASS X=e4m3: QGMMA UTMALDG UTMASTG
#include "cuda/include/wgmma.cuh"
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/scaled.cuh"
#include "ops/matmul/tiles.cuh"

struct Params {
    TensorMap x;   // boxes of TILE_M rows of 128 bytes
    TensorMap w;   // boxes of TILE_N / 2
    TensorMap up;  // what the gates `w` scale, if GATED
    TensorMap out; // boxes of 64 rows of 128 bytes
    TensorMap residual;
    Epilogue e;
    ScaleRows scales; // of e4m3
    float4* sums;    // of slices but the last, if SPLIT
    u32* counters;   // slices whose sums have come, one for each consumer of a tile
    i32 k;
    i32 slices;      // 1 unless SPLIT
    i32 slice_steps; // stages along k in a slice
    i32 pad[13];
};

constexpr i32 CONSUMER_ROWS = 64 * DOWN;
constexpr i32 SHARERS = PINGPONG ? 1 : CONSUMERS; // consumers of a tile
constexpr i32 TILE_M = CONSUMER_ROWS * SHARERS;
constexpr i32 TILE_COLS = GATED ? TILE_N / 2 : TILE_N; // columns of the result
constexpr i32 GROUP = 2048 / max_of(TILE_M, 128) / CLUSTER; // tiles of clusters that follow each other downwards
constexpr i32 THREADS = 128 * (1 + CONSUMERS);
constexpr bool FP8 = same_type<X, e4m3>::value;
constexpr i32 ROW_BYTES = 128; // of a row of a stage or of a buffer
constexpr i32 STEP = ROW_BYTES / static_cast<i32>(sizeof(X)); // elements of k in a stage
constexpr i32 STEP_UNITS = FP8 ? ROW_BYTES / 4 : STEP;        // and of a map: words of codes
constexpr i32 X_BYTES = TILE_M * ROW_BYTES, W_BYTES = TILE_N * ROW_BYTES;
constexpr i32 STAGE_BYTES = X_BYTES + W_BYTES;
constexpr i32 BUFFER_BYTES = 64 * ROW_BYTES;
constexpr i32 BUFFER_COLS = ROW_BYTES / static_cast<i32>(sizeof(OUT));
constexpr i32 PIECES_ACROSS = TILE_COLS / BUFFER_COLS;
constexpr i32 PIECES = DOWN * PIECES_ACROSS; // buffers that a consumer fills for a tile
static_assert(TILE_COLS % BUFFER_COLS == 0, "a tile is whole buffers");
static_assert(!FP8 || (TILE_N == 128 && DOWN == 1 && !PINGPONG && STEP == SCALE_SPAN), "registers for two sets of sums; a scale a stage");

// Shared memory: the ring, the buffers of each consumer, its biases and scales, barriers.
constexpr i32 BUFFERS_AT = STAGES * STAGE_BYTES;
constexpr i32 BIAS_AT = BUFFERS_AT + CONSUMERS * BUFFERS * BUFFER_BYTES;
constexpr i32 SCALES_AT = BIAS_AT + CONSUMERS * TILE_N * 4; // of the weights, two stages of each consumer
constexpr i32 BARRIERS_AT = SCALES_AT + (FP8 ? CONSUMERS * 2 * TILE_N * 4 : 0);

// Registers of a thread: few for the threads that only start copies, so that consumers have those for all sums.
constexpr i32 REGISTERS = 65536 / THREADS / 8 * 8;
constexpr i32 FEW_REGISTERS = 40;
constexpr i32 MANY_REGISTERS = min_of(240, (REGISTERS * THREADS - FEW_REGISTERS * 128) / (128 * CONSUMERS) / 8 * 8);

// Barriers of a consumer's threads, and those by which consumers take turns; one for each.
constexpr u32 SHARE = 1, TURN = SHARE + CONSUMERS;
static_assert(!PINGPONG || CONSUMERS == 2, "two take turns");

struct Barriers {
    u64 full[STAGES];                // a stage has come
    u64 empty[STAGES];               // its consumers, of both blocks of a cluster, are done with it
    u64 ready[CONSUMERS * BUFFERS];  // a buffer may be written, and holds the residual
    u64 filled[CONSUMERS * BUFFERS]; // a buffer holds results
};

// The tiles of this block, or those of one of its consumers. Tiles of the blocks of a cluster lie one below the other.
struct Walk {
    i32 down, across; // tiles of clusters
    i32 rank;         // of this block in its cluster
    i32 tile;         // the present one, of `down * across`
    i32 stride;
    i32 first_step, steps; // stages along k of the slice

    DEVICE explicit Walk(const Params& p) {
        down = ceil_div(p.e.rows, TILE_M * CLUSTER);
        across = ceil_div(p.e.cols, TILE_COLS);
        rank = CLUSTER > 1 ? static_cast<i32>(cluster_rank()) : 0;
        tile = static_cast<i32>(blockIdx.x) / CLUSTER;
        stride = static_cast<i32>(gridDim.x) / CLUSTER;
        first_step = 0;
        steps = ceil_div(p.k, STEP);
        if constexpr (SPLIT) {
            stride = down * across;
            first_step = tile / stride * p.slice_steps;
            steps = min_of(p.slice_steps, steps - first_step);
            tile %= stride;
        }
    }
    DEVICE Walk(const Params& p, i32 consumer) : Walk(p) {
        if constexpr (PINGPONG) {
            tile += consumer * stride;
            stride *= CONSUMERS;
        }
    }
    DEVICE bool more() const { return tile < down * across; }
    DEVICE void next() { tile += stride; }
    DEVICE Place place() const { return place_of<GROUP>(tile, down, across); }
    DEVICE i32 first_row() const { return (place().down * CLUSTER + rank) * TILE_M; }
    DEVICE i32 first_col() const { return place().across * TILE_COLS; }
};

// The first row of consumer `number` in a tile.
DEVICE i32 consumer_row(i32 number) { return PINGPONG ? 0 : number * CONSUMER_ROWS; }

// Brings the stages of all tiles.
DEVICE void produce(const Params& p, u8* smem, Barriers& bars) {
    Turn<STAGES> turn;
    for (Walk walk(p); walk.more(); walk.next()) {
        const i32 row = walk.first_row(), col = walk.first_col();
        for (i32 step = 0; step < walk.steps; ++step, turn.next()) {
            const i32 k = (walk.first_step + step) * STEP_UNITS;
            mbarrier_wait(&bars.empty[turn.slot], turn.parity ^ 1);
            u64* const full = &bars.full[turn.slot];
            u8* const stage = smem + turn.slot * STAGE_BYTES;
            mbarrier_arrive_expect(full, STAGE_BYTES);
            tma_load_2d(stage, &p.x, full, k, row);
            // The weights come in two halves: of the columns, or gates and what they scale.
#pragma unroll
            for (i32 half = 0; half < 2; ++half) {
                u8* const to = stage + X_BYTES + half * (W_BYTES / 2);
                const TensorMap* const map = GATED && half == 1 ? &p.up : &p.w;
                const i32 first = GATED ? col : col + half * (TILE_N / 2);
                if constexpr (CLUSTER == 1) {
                    tma_load_2d(to, map, full, k, first);
                } else if (half == walk.rank) {
                    tma_load_2d_multicast(to, map, full, k, first, (1 << CLUSTER) - 1);
                }
            }
        }
    }
}

// Whether this block ends its tiles: the last slice of k does.
DEVICE bool ends_tiles(const Params& p) {
    return !SPLIT || blockIdx.x >= gridDim.x / static_cast<u32>(p.slices) * static_cast<u32>(p.slices - 1);
}

// Sends the buffers of consumer `number` to the result as they are filled, and makes them ready for what comes next.
DEVICE void deliver(const Params& p, u8* smem, Barriers& bars, i32 number) {
    u8* const buffers = smem + BUFFERS_AT + number * BUFFERS * BUFFER_BYTES;
    u64* const ready = bars.ready + number * BUFFERS;
    u64* const filled = bars.filled + number * BUFFERS;

    // Buffer `slot` for the piece that `ahead` and `piece` name, and on to the piece after it.
    Walk ahead(p, number);
    i32 piece = 0;
    const auto make_ready = [&](i32 slot) {
        if (!ahead.more()) return;
        if constexpr (RESIDUAL) {
            mbarrier_arrive_expect(&ready[slot], BUFFER_BYTES);
            tma_load_2d(buffers + slot * BUFFER_BYTES, &p.residual, &ready[slot],
                        ahead.first_col() + piece % PIECES_ACROSS * BUFFER_COLS,
                        ahead.first_row() + consumer_row(number) + piece / PIECES_ACROSS * 64);
        } else {
            mbarrier_arrive(&ready[slot]);
        }
        if (++piece == PIECES) {
            piece = 0;
            ahead.next();
        }
    };
#pragma unroll
    for (i32 slot = 0; slot < BUFFERS; ++slot) make_ready(slot);

    Turn<BUFFERS> turn;
    for (Walk walk(p, number); walk.more(); walk.next()) {
        const i32 row = walk.first_row() + consumer_row(number), col = walk.first_col();
        for (i32 i = 0; i < PIECES; ++i, turn.next()) {
            mbarrier_wait(&filled[turn.slot], turn.parity);
            tma_store_2d(&p.out, buffers + turn.slot * BUFFER_BYTES, col + i % PIECES_ACROSS * BUFFER_COLS,
                         row + i / PIECES_ACROSS * 64);
            tma_store_commit();
            tma_store_wait_read<0>();
            make_ready(turn.slot);
        }
    }
}

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

// Two neighbouring results in a buffer, where the residual was.
template <typename O> DEVICE void put(O* at, f32 lo, f32 hi) {
    if constexpr (same_type<O, f32>::value) {
        float2* const to = reinterpret_cast<float2*>(at);
        const float2 r = RESIDUAL ? *to : make_float2(0.0f, 0.0f);
        *to = make_float2(lo + r.x, hi + r.y);
    } else {
        u32* const to = reinterpret_cast<u32*>(at);
        const float2 r = RESIDUAL ? unpack2<O>(*to) : make_float2(0.0f, 0.0f);
        *to = pack2<O>(lo + r.x, hi + r.y);
    }
}

// Ends the products of 64 rows and BUFFER_COLS columns that lie in a warpgroup's registers, and leaves them in a buffer. `sum` and
// `biases` are of the tile's 64 rows, `first` is the first column.
DEVICE void finish(u8* buffer, const f32 (&sum)[TILE_N / 2], const f32* biases, i32 first) {
    const i32 thread = static_cast<i32>(threadIdx.x) % 128, lane = thread % 32;
    const i32 row = thread / 32 * 16 + lane / 4, pair = lane % 4 * 2;
    constexpr i32 TO_UP = TILE_N / 4; // from the registers of a gate to those of what it scales
#pragma unroll
    for (i32 col = 0; col < BUFFER_COLS; col += 8) {
        const float2 bias = *reinterpret_cast<const float2*>(biases + first + col + pair);
        const float2 bias_up = *reinterpret_cast<const float2*>(biases + (GATED ? TILE_COLS : 0) + first + col + pair);
        const i32 byte = (col + pair) * static_cast<i32>(sizeof(OUT));
#pragma unroll
        for (i32 half = 0; half < 2; ++half) {
            const i32 at = (first + col) / 2 + 2 * half;
            f32 lo = activate(sum[at] + bias.x, ACT), hi = activate(sum[at + 1] + bias.y, ACT);
            if constexpr (GATED) {
                lo *= sum[at + TO_UP] + bias_up.x;
                hi *= sum[at + TO_UP + 1] + bias_up.y;
            }
            u8* const to = buffer + (row + 8 * half) * ROW_BYTES + (byte / 16 ^ row % 8) * 16 + byte % 16;
            put(reinterpret_cast<OUT*>(to), lo, hi);
        }
    }
}

// Starts the products of a stage for DOWN x 64 rows: added to `sum`, or, of the first step of k, in its place unless `add`.
DEVICE void multiply(f32 (&sum)[DOWN][TILE_N / 2], u64 x, u64 w, bool add) {
    wgmma_fence();
#pragma unroll
    for (i32 k = 0; k < ROW_BYTES / 32; ++k)
#pragma unroll
        for (i32 d = 0; d < DOWN; ++d) wgmma_ss<TILE_N, X>(sum[d], x + (d * 64 * ROW_BYTES >> 4) + 2 * k, w + 2 * k, add || k > 0);
    wgmma_commit();
}

// Multiplies the rows of consumer `number`, and leaves the results in its buffers.
DEVICE void consume(const Params& p, u8* smem, Barriers& bars, i32 number) {
    u8* const buffers = smem + BUFFERS_AT + number * BUFFERS * BUFFER_BYTES;
    f32* const biases = reinterpret_cast<f32*>(smem + BIAS_AT) + number * TILE_N;
    f32* const of_weights = reinterpret_cast<f32*>(smem + SCALES_AT) + number * 2 * TILE_N;
    const u64 x_descriptor = wgmma_descriptor(smem + consumer_row(number) * ROW_BYTES);
    const u64 w_descriptor = wgmma_descriptor(smem + X_BYTES);

    Walk walk(p, number);
    const i32 steps = walk.steps;
    Turn<STAGES> turn;
    Turn<BUFFERS> out;
    if constexpr (PINGPONG) {
        turn.skip(number * steps);
        if (number == 1) barrier_arrive(TURN, 2 * 128); // the first turn is that of consumer 0
    }
    f32 sum[DOWN][TILE_N / 2];
    for (; walk.more(); walk.next()) {
        TileBiases<TILE_N, GATED> bias(p.e, walk.first_col());
        // A parity tells a round of the ring from the next one only: a consumer may look at it when the other one, whose stages
        // come before its own, has seen all of them.
        if constexpr (PINGPONG) barrier_sync(TURN + number, 2 * 128);
        if constexpr (FP8) {
            const i32 k = walk.first_step * STEP;
            const i32 row = walk.first_row() + consumer_row(number);
            StageScales<TILE_N, GATED> scales(p.scales, p.e, of_weights, row, walk.first_col(), k, k + steps * STEP);
#pragma unroll
            for (i32 i = 0; i < TILE_N / 2; ++i) sum[0][i] = 0.0f;
            for (i32 step = 0; step < steps; ++step, turn.next()) {
                scales.next(step, k + step * STEP, SHARE + number);
                mbarrier_wait(&bars.full[turn.slot], turn.parity);
                const u32 stage = static_cast<u32>(turn.slot * STAGE_BYTES) >> 4;
                f32 part[DOWN][TILE_N / 2];
                multiply(part, x_descriptor + stage, w_descriptor + stage, false);
                wgmma_wait<0>();
                wgmma_pin(part[0]);
                give_back(&bars.empty[turn.slot]);
                scales.add(sum[0], part[0], step);
            }
        } else {
            u64* before = nullptr;
            for (i32 step = 0; step < steps; ++step, turn.next()) {
                mbarrier_wait(&bars.full[turn.slot], turn.parity);
                const u32 stage = static_cast<u32>(turn.slot * STAGE_BYTES) >> 4;
                multiply(sum, x_descriptor + stage, w_descriptor + stage, step > 0);
                wgmma_wait<1>();
                if (before != nullptr) give_back(before);
                before = &bars.empty[turn.slot];
            }
            if constexpr (PINGPONG) {
                barrier_arrive(TURN + 1 - number, 2 * 128);
                turn.skip(steps);
            }
            wgmma_wait<0>();
#pragma unroll
            for (i32 d = 0; d < DOWN; ++d) wgmma_pin(sum[d]);
            give_back(before);
        }

        if constexpr (SPLIT) {
            const i32 place = PINGPONG ? walk.tile : walk.tile * CONSUMERS + number;
            float4* const sums = p.sums + static_cast<i64>(place) * (p.slices - 1) * (DOWN * TILE_N / 8) * 128;
            const i32 slice = walk.first_step / p.slice_steps;
            if (!join_last(sum, sums, p.counters + place, slice, p.slices, SHARE + number)) return;
        }
        bias.share(biases, SHARE + number);
#pragma unroll
        for (i32 d = 0; d < DOWN; ++d) {
#pragma unroll
            for (i32 piece = 0; piece < PIECES_ACROSS; ++piece, out.next()) {
                mbarrier_wait(&bars.ready[number * BUFFERS + out.slot], out.parity);
                finish(buffers + out.slot * BUFFER_BYTES, sum[d], biases, piece * BUFFER_COLS);
                fence_async_shared();
                __syncwarp();
                if (lane_id() == 0) mbarrier_arrive(&bars.filled[number * BUFFERS + out.slot]);
            }
        }
    }
}

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    Barriers& bars = *reinterpret_cast<Barriers*>(smem + BARRIERS_AT);
    if (threadIdx.x == 0) {
        for (u64& bar : bars.full) mbarrier_init(&bar, 1);
        for (u64& bar : bars.empty) mbarrier_init(&bar, 4 * SHARERS * CLUSTER);
        for (u64& bar : bars.ready) mbarrier_init(&bar, 1);
        for (u64& bar : bars.filled) mbarrier_init(&bar, 4);
        mbarrier_init_fence();
        tensor_map_prefetch(&p.x);
        tensor_map_prefetch(&p.w);
        tensor_map_prefetch(&p.out);
    }
    if constexpr (CLUSTER > 1) {
        cluster_sync();
    } else {
        __syncthreads();
    }
    grid_wait();

    const i32 warp = static_cast<i32>(warp_id());
    if (warp < 4) {
        registers_shrink<FEW_REGISTERS>();
        if (warp == 0 && elect_one()) produce(p, smem, bars);
        if (warp > 0 && warp <= CONSUMERS && ends_tiles(p) && elect_one()) deliver(p, smem, bars, warp - 1);
        __syncwarp();
    } else {
        registers_grow<MANY_REGISTERS>();
        consume(p, smem, bars, warp / 4 - 1);
    }
    // Blocks of a cluster write to each other's memory: none may end before the other.
    if constexpr (CLUSTER > 1) cluster_sync();
}
