// out = act(x w^T + bias) + residual on tensor cores, for x and w of one type X, of 16 bits or e4m3; gated too. See
// `epilogue.cuh`.
//
// x: [m, k] of X   w: [n, k] of X   out: [m, n], or [m, n / 2] if GATED; sums in f32. sm_80 and later, e4m3 sm_89.
//
// Floats of 8 bits have scales (`scaled.cuh`), which 128 of k share: a stage is as long, and its products are summed apart
// before they are added, times their scales, to those of the tile.
//
// A block makes a tile of TILE_M x TILE_N products with WARPS_DOWN x WARPS_ACROSS warps. Both operands lie along k in memory, which
// is how mma takes them: stages of STEP elements of k come by cp.async, STAGES in a ring, and go to registers by ldmatrix. A
// row of a stage is 64 or 128 bytes; its parts of 16 bytes are permuted by the row's number, so that the eight rows which
// ldmatrix reads at once lie in different banks. Operands of the next 16 of k are read while those before are multiplied, across
// stages too: one barrier a stage.
//
// Copies of 16 bytes ask for rows that begin at multiples of 16 bytes (VEC = 8); else elements are read one by one (VEC = 1).
// What lies past k becomes zeros. Where tiles are too few for the device, k is cut into slices (`join_slices`).
//
// A warp of a gated tile has half gates and half what they scale, of the same columns: a thread holds both.
//
// Products pass through shared memory on their way out, 16 rows of a warp at a time: threads then end eight neighbouring columns
// each, with accesses of 16 bytes.
//
// SASS X=bf16: HMMA LDSM
// SASS X=f16: HMMA LDSM
// SASS X=e4m3 sm_89: QMMA LDSM
// SASS X=e4m3 sm_90a: HMMA LDSM
// SASS X=e4m3 sm_120: QMMA LDSM
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/scaled.cuh"
#include "ops/matmul/tiles.cuh"
#include "ops/matmul/weights.cuh"

struct Params {
    const X* x;
    i64 x_stride;
    const f32* x_scales; // of e4m3: [ceil(k / 128), x_scale_stride]
    i64 x_scale_stride;
    WeightRows w;
    WeightRows up; // what the gates `w` scale
    Epilogue e;
    float4* sums;  // of slices, see `join_slices`
    u32* counters; // one for each tile
    i32 k;
    i32 slice;  // columns of k in a slice, a multiple of STEP
    i32 slices; // gridDim.y
    u32 pad;
};

constexpr i32 THREADS = 32 * WARPS_DOWN * WARPS_ACROSS;
constexpr i32 WARP_M = TILE_M / WARPS_DOWN, WARP_N = TILE_N / WARPS_ACROSS;
constexpr i32 DOWN = WARP_M / 16, ACROSS = WARP_N / 8; // products of mma of a warp
constexpr i32 TILE_COLS = GATED ? TILE_N / 2 : TILE_N; // columns of the result
constexpr i32 WARP_COLS = GATED ? WARP_N / 2 : WARP_N;
constexpr bool FP8 = same_type<X, e4m3>::value;
constexpr i32 PART = 16 / static_cast<i32>(sizeof(X)); // elements in 16 bytes
constexpr i32 PARTS = STEP / PART;                     // in a row of a stage
constexpr i32 STAGE = (TILE_M + TILE_N) * STEP;
constexpr i32 SCALES = TILE_M + TILE_N; // of a stage of e4m3
constexpr i32 PITCH = WARP_N + 8; // f32 from row to row of products on their way out
// On a multiprocessor: so that a thread may have the registers that its products and two sets of operands take.
constexpr i32 BLOCKS = (WARP_M * WARP_N > 1024 ? 256 : 384) / THREADS;

static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp's products are made of 16 x 16");
static_assert(PARTS == 4 || PARTS == 8, "a row of a stage has 64 or 128 bytes");
static_assert(!FP8 || (STEP == SCALE_SPAN && SCALES <= THREADS), "a stage has one scale a row, and each a thread to fetch it");

// Where part `part` of row `row` lies in an operand of a stage.
DEVICE i32 swizzled(i32 row, i32 part) {
    const i32 key = PARTS == 8 ? row & 7 : row >> 1 & 3;
    return row * STEP + (part ^ key) * PART;
}

// Starts to bring the first `count` elements of 16 bytes; the others become zeros.
DEVICE void bring(X* to, const X* from, i32 count) {
    if constexpr (VEC == 8) {
        cp_async_16(to, from, static_cast<u32>(count) * sizeof(X));
    } else {
        u32 words[4];
#pragma unroll
        for (i32 i = 0; i < 4; ++i) {
            const u32 lo = 2 * i < count ? from[2 * i].bits : 0;
            const u32 hi = 2 * i + 1 < count ? from[2 * i + 1].bits : 0;
            words[i] = lo | hi << 16;
        }
        store_words(to, words);
    }
}

// Starts to bring a stage: columns `col` on, below `end`, of the tile's rows of x and w. In the place of rows beyond an operand
// comes its last one: their products are left out of the result.
DEVICE void bring_stage(X* stage, const Params& p, i32 first_row, i32 first_col, i32 col, i32 end) {
    constexpr i32 ROWS = THREADS / PARTS; // that the block brings at once
    const i32 part = static_cast<i32>(threadIdx.x) % PARTS, at = static_cast<i32>(threadIdx.x) / PARTS;
    const i32 count = max_of(0, min_of(PART, end - col - PART * part));
    const i32 from = count > 0 ? col + PART * part : 0; // an address of the row even where nothing is read
#pragma unroll
    for (i32 slot = at; slot < TILE_M; slot += ROWS) {
        const i32 row = min_of(first_row + slot, p.e.rows - 1);
        bring(stage + swizzled(slot, part), p.x + row * p.x_stride + from, count);
    }
#pragma unroll
    for (i32 slot = at; slot < TILE_N; slot += ROWS) {
        const WeightRows& w = GATED && slot % WARP_N >= WARP_COLS ? p.up : p.w;
        const i32 row = w.first + min_of(first_col + slot / WARP_N * WARP_COLS + slot % WARP_COLS, p.e.cols - 1);
        // Strides of codes are in words.
        const X* const data = static_cast<const X*>(w.data) + row * w.stride * (FP8 ? 4 : 1);
        bring(stage + TILE_M * STEP + swizzled(slot, part), data + from, count);
    }
}

// The scale that thread `slot` fetches, of a row of the tile's x or w, for the stage that begins at column `col`.
DEVICE f32 fetch_scale(const Params& p, i32 slot, i32 first_row, i32 first_col, i32 col) {
    if (slot < TILE_M) {
        const i32 row = min_of(first_row + slot, p.e.rows - 1);
        return p.x_scales[col / SCALE_SPAN * p.x_scale_stride + row];
    }
    slot -= TILE_M;
    const WeightRows& w = GATED && slot % WARP_N >= WARP_COLS ? p.up : p.w;
    return weight_scale(w, min_of(first_col + slot / WARP_N * WARP_COLS + slot % WARP_COLS, p.e.cols - 1), col);
}

// Operands of a warp for 32 bytes along k.
struct Operands {
    u32 a[DOWN][4];
    u32 b[ACROSS / 2][4];
};

// Reads those of part pair `step` of a stage.
DEVICE void read_operands(Operands& to, const X* stage, i32 warp_row, i32 warp_col, i32 step) {
    const i32 lane = static_cast<i32>(lane_id());
#pragma unroll
    for (i32 i = 0; i < DOWN; ++i)
        ldmatrix_x4(to.a[i], stage + swizzled(warp_row + 16 * i + lane % 16, 2 * step + lane / 16));
#pragma unroll
    for (i32 j = 0; j < ACROSS / 2; ++j) {
        const i32 slot = warp_col + 16 * j + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(to.b[j], stage + TILE_M * STEP + swizzled(slot, 2 * step + lane / 8 % 2));
    }
}

DEVICE void multiply(f32 (&sum)[DOWN * ACROSS][4], const Operands& from) {
#pragma unroll
    for (i32 i = 0; i < DOWN; ++i)
#pragma unroll
        for (i32 j = 0; j < ACROSS; ++j)
            mma_32_bytes<X>(sum[i * ACROSS + j], from.a[i], from.b[j / 2][j % 2 * 2], from.b[j / 2][j % 2 * 2 + 1]);
}

// Scales of a warp's rows and columns in a stage.
struct Scales {
    f32 x[2 * DOWN];
    float2 w[ACROSS];
};

DEVICE void read_scales(Scales& to, const f32* scales, i32 warp_row, i32 warp_col) {
    const i32 lane = static_cast<i32>(lane_id());
#pragma unroll
    for (i32 i = 0; i < 2 * DOWN; ++i) to.x[i] = scales[warp_row + 8 * i + lane / 4];
#pragma unroll
    for (i32 j = 0; j < ACROSS; ++j)
        to.w[j] = *reinterpret_cast<const float2*>(scales + TILE_M + warp_col + 8 * j + lane % 4 * 2);
}

// Ends a warp's products, whose first is (row, col) of the result.
DEVICE void finish(f32 (&sum)[DOWN * ACROSS][4], const Epilogue& e, f32* passing, i32 row, i32 col) {
    const i32 lane = static_cast<i32>(lane_id());
#pragma unroll 1
    for (i32 i = 0; i < DOWN; ++i) {
#pragma unroll
        for (i32 j = 0; j < ACROSS; ++j)
#pragma unroll
            for (i32 half = 0; half < 2; ++half)
                *reinterpret_cast<float2*>(passing + (lane / 4 + 8 * half) * PITCH + 8 * j + lane % 4 * 2) =
                    make_float2(sum[j][2 * half], sum[j][2 * half + 1]);
        __syncwarp();
        constexpr i32 GROUPS = WARP_COLS / 8;
        for (i32 at = lane; at < 16 * GROUPS; at += 32) {
            const f32* const from = passing + at / GROUPS * PITCH + at % GROUPS * 8;
            f32 product[8], up[8] = {};
            load_group(product, from, VALUE_F32, 0);
            if constexpr (GATED) load_group(up, from + WARP_COLS, VALUE_F32, 0);
            emit<8, GATED>(e, row + 16 * i + at / GROUPS, col + at % GROUPS * 8, product, up);
        }
        __syncwarp();
        // The next 16 rows move to the front: registers are not indexed, and the code above is there once.
#pragma unroll
        for (i32 j = 0; j < (DOWN - 1) * ACROSS; ++j)
#pragma unroll
            for (i32 r = 0; r < 4; ++r) sum[j][r] = sum[j + ACROSS][r];
    }
}

KERNEL(THREADS, BLOCKS)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    X* const ring = reinterpret_cast<X*>(smem);
    f32* const scales = reinterpret_cast<f32*>(smem + STAGES * STAGE * static_cast<i32>(sizeof(X))); // of each stage, of e4m3

    const i32 down = ceil_div(p.e.rows, TILE_M), across = ceil_div(p.e.cols, TILE_COLS);
    const Place place = place_of<8>(static_cast<i32>(blockIdx.x), down, across);
    const i32 first_row = place.down * TILE_M, first_col = place.across * TILE_COLS;
    const i32 slice = static_cast<i32>(blockIdx.y);
    const i32 begin = slice * p.slice, end = min_of(p.k, begin + p.slice);
    const i32 stages = ceil_div(max_of(end - begin, 0), STEP);

    const i32 warp = static_cast<i32>(warp_id());
    const i32 warp_row = warp / WARPS_ACROSS * WARP_M, warp_across = warp % WARPS_ACROSS;
    const i32 warp_col = warp_across * WARP_N;

    // Stage number `i` of this slice, if there is one. A group is closed each time, so that groups can be counted. Scales are
    // fetched a stage ahead of their place in shared memory.
    const i32 slot = static_cast<i32>(threadIdx.x);
    f32 scale = 0.0f;
    const auto next_scale = [&](i32 i) {
        if (FP8 && slot < SCALES && i < stages) scale = fetch_scale(p, slot, first_row, first_col, begin + i * STEP);
    };
    const auto start = [&](i32 i) {
        if (i < stages) bring_stage(ring + i % STAGES * STAGE, p, first_row, first_col, begin + i * STEP, end);
        cp_async_commit();
        if (FP8 && slot < SCALES && i < stages) scales[i % STAGES * SCALES + slot] = scale;
        next_scale(i + 1);
    };

    grid_wait();
    next_scale(0);
#pragma unroll
    for (i32 i = 0; i < STAGES - 1; ++i) start(i);

    f32 sum[DOWN * ACROSS][4] = {};
    Operands operands[2];
    constexpr i32 STEPS = PARTS / 2;
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (stages > 0) read_operands(operands[0], ring, warp_row, warp_col, 0);
    for (i32 i = 0; i < stages; ++i) {
        const X* const stage = ring + i % STAGES * STAGE;
        f32 part[DOWN * ACROSS][4] = {}; // of e4m3
        Scales stage_scales; // read ahead of the barrier, after which others come to their place
        if constexpr (FP8) read_scales(stage_scales, scales + i % STAGES * SCALES, warp_row, warp_col);
#pragma unroll
        for (i32 step = 0; step < STEPS; ++step) {
            if (step < STEPS - 1) {
                read_operands(operands[(step + 1) % 2], stage, warp_row, warp_col, step + 1);
                // The stage before was last read ahead of the barrier: its place is free.
                if (step == 0) start(i + STAGES - 1);
            } else {
                cp_async_wait<STAGES - 2>();
                __syncthreads();
                if (i + 1 < stages) read_operands(operands[0], ring + (i + 1) % STAGES * STAGE, warp_row, warp_col, 0);
            }
            if constexpr (FP8) {
                multiply(part, operands[step % 2]);
            } else {
                multiply(sum, operands[step % 2]);
            }
        }
        if constexpr (FP8) {
#pragma unroll
            for (i32 at = 0; at < DOWN * ACROSS; ++at) {
                const i32 rows = at / ACROSS * 2;
                add_scaled(sum[at], part[at], stage_scales.x[rows], stage_scales.x[rows + 1], stage_scales.w[at % ACROSS]);
            }
        }
    }
    cp_async_wait<0>();
    __syncthreads();

    if (p.slices > 1) {
        constexpr i32 QUADS = DOWN * ACROSS;
        float4* const memory = p.sums + static_cast<i64>(blockIdx.x) * p.slices * QUADS * THREADS;
        u32* const flag = reinterpret_cast<u32*>(smem);
        if (!join_slices<THREADS, QUADS>(sum, memory, p.counters + blockIdx.x, slice, p.slices, flag)) return;
        __syncthreads();
    }
    f32* const passing = reinterpret_cast<f32*>(smem) + warp * 16 * PITCH;
    finish(sum, p.e, passing, first_row + warp_row, first_col + warp_across * WARP_COLS);
}
