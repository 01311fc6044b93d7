// out = act(x w^T + bias) + residual in exact f32, for operands of any type, alignment and format; gated too. See `epilogue.cuh`.
//
// x: [m, k]   w: [n, k], floats or codes in groups (CODE)   out: [m, n], or [m, n / 2] if GATED
//
// A block makes a tile of TILE x TILE products with 256 threads, SIDE x SIDE of them each: SIDE is 8, or 4 where larger tiles are too
// few. Steps of 16 along k go through shared memory, widened to f32 and stored k-major, so that a thread reads the operands of
// its squares of 4 x 4 products with loads of 16 bytes: 64 multiply-adds for 4 loads. While a step is multiplied the next one is
// on its way to registers, and it goes to the other of two buffers: one barrier a step. A gated tile has as many gates as
// columns that they scale, in halves.
//
// At the end the products pass through shared memory, 64 rows at a time, for an epilogue on whole groups of columns in which
// neighbouring threads touch neighbouring memory.
//
// SASS: FFMA LDG.E.128 LDS.128
#include "ops/matmul/epilogue.cuh"
#include "ops/matmul/weights.cuh"
#include "quant/grouped/element.cuh"

struct Params {
    const void* x;
    i64 x_stride;
    WeightRows w;
    WeightRows up; // what the gates `w` scale
    Epilogue e;
    i32 k;
    u32 x_type;
    u32 x_aligned; // whether each row of x begins at a multiple of 16 bytes
    u32 pad;
};

constexpr i32 THREADS = 256;
constexpr i32 TILE = 16 * SIDE;
constexpr i32 SQUARES = SIDE / 4; // of 4 x 4 products, along each side of a thread's products; 64 rows or columns apart
constexpr i32 STEP = 16;
constexpr i32 SPAN = TILE * STEP / THREADS; // elements along k that a thread brings of each operand
constexpr i32 PITCH = TILE + 4; // elements from one k to the next in shared memory
constexpr i32 BUFFER = STEP * PITCH;
constexpr i32 TILE_COLS = GATED ? TILE / 2 : TILE;

// A row of an operand that a thread brings, dense: its first element, and how many there are, 0 for rows beyond the operand.
struct Row {
    const void* data;
    u32 type;
    bool aligned;
    i32 count;
};

DEVICE Row row_of(const void* data, u32 type, bool aligned, i64 offset, bool exists, i32 k) {
    const i64 size = type == VALUE_F32 ? 4 : 2;
    return Row{static_cast<const u8*>(data) + (exists ? offset * size : 0), type, aligned, exists ? k : 0};
}

// Elements `at` .. `at + SPAN`; zeros for those that the row does not have.
DEVICE void load_span(f32 (&v)[SPAN], const Row& row, i32 at) {
    if (row.aligned && at + SPAN <= row.count) {
        load_group(v, row.data, row.type, at);
    } else {
        load_some(v, row.data, row.type, at, row.count - at);
    }
}

DEVICE void load_four(f32* to, const f32* from) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
DEVICE void store_four(f32* to, const f32* from) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

KERNEL(THREADS, BITS == 0 ? 2 : 1)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    f32* const tiles = reinterpret_cast<f32*>(smem); // two buffers of a step of x and of w

    const i32 tiles_down = ceil_div(p.e.rows, TILE);
    const i32 first_row = static_cast<i32>(blockIdx.x) % tiles_down * TILE;
    const i32 first_col = static_cast<i32>(blockIdx.x) / tiles_down * TILE_COLS;

    // What this thread brings: SPAN elements of a row of each operand.
    const i32 slot = static_cast<i32>(threadIdx.x) % TILE;
    const i32 part = static_cast<i32>(threadIdx.x) / TILE * SPAN;
    // What it multiplies: squares that begin at this row and column; a warp makes 4 x 8 of them.
    const i32 warp = static_cast<i32>(threadIdx.x) / 32, lane = static_cast<i32>(threadIdx.x) % 32;
    const i32 row4 = 4 * (warp / 2 * 4 + lane / 8), col4 = 4 * (warp % 2 * 8 + lane % 8);

    const bool idle = first_row + warp / 2 * 16 >= p.e.rows; // no row of the warp is one of x
    f32 sum[SIDE][SIDE] = {};
    f32 next_x[SPAN], next_w[SPAN];
    const Row x_row = row_of(p.x, p.x_type, p.x_aligned != 0, (first_row + slot) * p.x_stride, first_row + slot < p.e.rows, p.k);
    const WeightRows& w = slot < TILE_COLS ? p.w : p.up;
    const i32 col = first_col + slot % TILE_COLS;
    const Row w_row = row_of(w.data, w.type, w.aligned != 0, (w.first + col) * w.stride, col < p.e.cols, p.k);
    const auto fetch = [&](i32 at) {
        load_span(next_x, x_row, at + part);
        if constexpr (BITS == 0) {
            load_span(next_w, w_row, at + part);
        } else {
#pragma unroll
            for (i32 i = 0; i < SPAN; ++i)
                next_w[i] = at + part + i < w_row.count ? grouped_element<CODE>(w, w.first + col, at + part + i) : 0.0f;
        }
    };
    const auto keep = [&](i32 buffer) {
        f32* const to = tiles + buffer * 2 * BUFFER + part * PITCH + slot;
#pragma unroll
        for (i32 i = 0; i < SPAN; ++i) {
            to[i * PITCH] = next_x[i];
            to[BUFFER + i * PITCH] = next_w[i];
        }
    };

    grid_wait();
    if (p.k > 0) {
        fetch(0);
        keep(0);
    }
    __syncthreads();
    i32 buffer = 0;
    for (i32 at = 0; at < p.k; at += STEP) {
        const bool more = at + STEP < p.k;
        if (more) fetch(at + STEP);
        const f32* const x = tiles + buffer * 2 * BUFFER;
        const f32* const w = x + BUFFER;
#pragma unroll
        for (i32 step = 0; step < STEP && !idle; ++step) {
            f32 a[SIDE], b[SIDE];
#pragma unroll
            for (i32 square = 0; square < SQUARES; ++square) {
                load_four(a + 4 * square, x + step * PITCH + 64 * square + row4);
                load_four(b + 4 * square, w + step * PITCH + 64 * square + col4);
            }
#pragma unroll
            for (i32 i = 0; i < SIDE; ++i)
#pragma unroll
                for (i32 j = 0; j < SIDE; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
        buffer ^= 1;
        if (more) keep(buffer);
        __syncthreads();
    }

#pragma unroll
    for (i32 down = 0; down < SQUARES; ++down) {
#pragma unroll
        for (i32 i = 0; i < 4; ++i)
#pragma unroll
            for (i32 square = 0; square < SQUARES; ++square)
                store_four(tiles + (row4 + i) * PITCH + 64 * square + col4, sum[4 * down + i] + 4 * square);
        __syncthreads();
        constexpr i32 GROUPS = TILE_COLS / 4;
        for (i32 i = static_cast<i32>(threadIdx.x); i < 64 * GROUPS; i += THREADS) {
            const i32 row = i / GROUPS, col = i % GROUPS * 4;
            f32 product[4], up[4] = {};
            load_four(product, tiles + row * PITCH + col);
            if constexpr (GATED) load_four(up, tiles + row * PITCH + TILE_COLS + col);
            emit<4, GATED>(p.e, first_row + 64 * down + row, first_col + col, product, up);
        }
        __syncthreads();
    }
}
