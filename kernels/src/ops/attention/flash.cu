// Attention by f32 multiply-adds: any types, strides, head sizes, pages and masks. Keys and values of i8 are codes, each head with its scale
// behind it.
//
// A block takes 16 ROWS query rows of a key head of a sequence and goes over tiles of 64 keys with the online softmax: scores
// stay in registers, powers pass through shared memory, sums of powers times values stay in registers, COLUMNS of them a row.
// Threads form a square of 16: thread (y, x) has the rows y + 16 i, of scores the keys x + 16 j, of sums the pairs of columns
// x + 16 c, so that a half warp shares what it reads of a row and reads neighbouring words of the rest.
//
// Heads of any size pass through shared memory in chunks of 32 elements for the scores. Heads of more than COLUMNS elements are
// given to several blocks, which compute the same scores.
//
// Where there are few rows (decoding), keys are split among `splits` blocks, see partial.cuh.
//
// Grid: (tiles of rows x slabs of columns x splits, key heads, sequences); tiles beyond a sequence's rows end at once.
// SASS: FFMA LDS.128 MUFU.EX2
#include "cuda/include/values.cuh"
#include "ops/attention/partial.cuh"

constexpr i32 TILE_Q = 16 * ROWS;
constexpr i32 TILE_K = 64;
constexpr i32 PAIRS = COLUMNS / 32;

// Shared memory, in floats: chunks of queries and keys, powers, some rows of values. Rows of four more than a multiple of 32
// words put the 16-byte reads of eight threads in different banks.
constexpr i32 CHUNK = 32;
constexpr i32 CHUNK_PITCH = CHUNK + 4;
constexpr i32 POWER_PITCH = TILE_K + 4;
constexpr i32 V_ROWS = 32;
constexpr i32 Q_AT = 0;
constexpr i32 K_AT = Q_AT + TILE_Q * CHUNK_PITCH;
constexpr i32 POWERS_AT = K_AT + TILE_K * CHUNK_PITCH;
constexpr i32 V_AT = POWERS_AT + TILE_Q * POWER_PITCH;

// Copies the elements column .. column + 4 of a row as f32; zeros for those beyond the head, and for absent rows.
DEVICE void stage(f32* to, const void* from, u32 type, i64 row, bool exists, i32 column, const Operands& p) {
    f32 v[4] = {};
    if (exists && column < p.head_dim) {
        if (type == VALUE_I8) {
            const u8* const head = static_cast<const u8*>(from) + row;
            const u32 codes = *reinterpret_cast<const u32*>(head + column);
            const f32 scale = *reinterpret_cast<const f32*>(head + p.head_dim);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = scale * static_cast<f32>(static_cast<i8>(codes >> (8 * i) & 0xffu));
        } else if (p.aligned) {
            load_group(v, from, type, row + column);
        } else {
            load_some(v, from, type, row + column, p.head_dim - column);
        }
    }
    *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
}

DEVICE f32 dot(float4 a, float4 b, f32 sum) { return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum)))); }

KERNEL(256, COLUMNS <= 64 ? 2 : 1)(const __grid_constant__ Operands p) {
    SHARED_MEMORY(smem);
    f32* const words = reinterpret_cast<f32*>(smem);
    const i32 thread = threadIdx.x;
    const i32 x = thread % 16;
    const i32 y = thread / 16;
    grid_wait();

    const i32 slabs = max_of(ceil_div(p.head_dim, COLUMNS), 1);
    const i32 part = blockIdx.x % p.splits;
    const i32 slab = blockIdx.x / p.splits % slabs;
    // Late rows see most keys: they come first.
    const i32 row_tiles = gridDim.x / p.splits / slabs;
    const i32 row_tile = row_tiles - 1 - static_cast<i32>(blockIdx.x) / p.splits / slabs;
    const i32 head = blockIdx.y;
    const Sequence s = read_sequence(p, blockIdx.z);
    const i32 rows = rows_of(p, s);
    const i32 first_row = row_tile * TILE_Q;
    if (first_row >= rows) return;
    const i32 last_row = min_of(first_row + TILE_Q, rows) - 1;
    const i32 first_column = slab * COLUMNS;

    const KeyTiles<TILE_K> tiles(p, s, first_row, last_row);
    const i32 each = tiles_of_part(tiles.count, p.splits);
    const i32 parts = max_of(ceil_div(tiles.count, each), 1);
    if (part >= parts) return;

    Seen seen[ROWS];
    f32 most[ROWS], sum[ROWS], o[ROWS][2 * PAIRS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        seen[i] = seen_by(p, s, first_row + y + 16 * i);
        most[i] = LEAST;
        sum[i] = 0.0f;
#pragma unroll
        for (int c = 0; c < 2 * PAIRS; ++c) o[i][c] = 0.0f;
    }

    for (i32 tile = part * each; tile < min_of((part + 1) * each, tiles.count); ++tile) {
        const i32 key = tiles.key(tile);

        f32 scores[ROWS][4] = {};
        for (i32 d = 0; d < p.head_dim; d += CHUNK) {
            __syncthreads();
            for (i32 i = thread; i < (TILE_Q + TILE_K) * (CHUNK / 4); i += 256) {
                const i32 row = i / (CHUNK / 4);
                const i32 column = i % (CHUNK / 4) * 4;
                f32* const to = words + row * CHUNK_PITCH + column;
                if (row < TILE_Q) {
                    const bool exists = first_row + row <= last_row;
                    const i64 at = exists ? q_place(p, s, head, first_row + row) : 0;
                    stage(to, p.q, p.x_type, at, exists, d + column, p);
                } else {
                    const i32 j = key + row - TILE_Q;
                    const i64 at = j < tiles.end ? k_place(p, slot_of(p, s, j, p.page), head) : 0;
                    stage(to, p.k, p.kv_type, at, j < tiles.end, d + column, p);
                }
            }
            __syncthreads();
#pragma unroll
            for (i32 c = 0; c < CHUNK; c += 4) {
                float4 k[4];
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    k[j] = *reinterpret_cast<const float4*>(words + K_AT + (x + 16 * j) * CHUNK_PITCH + c);
#pragma unroll
                for (int i = 0; i < ROWS; ++i) {
                    const float4 q = *reinterpret_cast<const float4*>(words + Q_AT + (y + 16 * i) * CHUNK_PITCH + c);
#pragma unroll
                    for (int j = 0; j < 4; ++j) scores[i][j] = dot(q, k[j], scores[i][j]);
                }
            }
        }

#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            f32 highest = most[i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                f32 score = scores[i][j] * p.scale;
                if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
                score = sees(seen[i], key + x + 16 * j) ? score * LOG2_E : hidden();
                scores[i][j] = score;
                highest = fmaxf(highest, score);
            }
            highest = warp_max<16>(highest);
            const f32 shrink = exp2_fast(most[i] - highest);
            most[i] = highest;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const f32 power = exp2_fast(scores[i][j] - highest);
                sum[i] += power;
                words[POWERS_AT + (y + 16 * i) * POWER_PITCH + x + 16 * j] = power;
            }
#pragma unroll
            for (int c = 0; c < 2 * PAIRS; ++c) o[i][c] *= shrink;
        }

        for (i32 first = 0; first < TILE_K; first += V_ROWS) {
            __syncthreads();
            for (i32 i = thread; i < V_ROWS * (COLUMNS / 4); i += 256) {
                const i32 row = i / (COLUMNS / 4);
                const i32 column = i % (COLUMNS / 4) * 4;
                const i32 j = key + first + row;
                const bool exists = j >= tiles.begin && j < tiles.end;
                const i64 at = exists ? v_place(p, slot_of(p, s, j, p.page), head) : 0;
                stage(words + V_AT + row * COLUMNS + column, p.v, p.kv_type, at, exists, first_column + column, p);
            }
            __syncthreads();
#pragma unroll 1
            for (i32 j = 0; j < V_ROWS; j += 4) {
                float4 powers[ROWS];
#pragma unroll
                for (int i = 0; i < ROWS; ++i)
                    powers[i] = *reinterpret_cast<const float4*>(words + POWERS_AT + (y + 16 * i) * POWER_PITCH + first + j);
#pragma unroll
                for (int c = 0; c < PAIRS; ++c) {
                    float2 v[4];
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        v[e] = *reinterpret_cast<const float2*>(words + V_AT + (j + e) * COLUMNS + 2 * (x + 16 * c));
#pragma unroll
                    for (int i = 0; i < ROWS; ++i) {
                        o[i][2 * c] = dot(powers[i], make_float4(v[0].x, v[1].x, v[2].x, v[3].x), o[i][2 * c]);
                        o[i][2 * c + 1] = dot(powers[i], make_float4(v[0].y, v[1].y, v[2].y, v[3].y), o[i][2 * c + 1]);
                    }
                }
            }
        }
    }

    const i32 unit = (static_cast<i32>(blockIdx.z) * p.heads_kv + head) * row_tiles + row_tile;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const f32 total = warp_sum<16>(sum[i]);
        const i32 row = y + 16 * i;
        if (first_row + row > last_row) continue;
        if (parts == 1) {
            const f32 inverse = total > 0.0f ? 1.0f / total : 0.0f;
            const i64 out = out_place(p, s, head, first_row + row);
#pragma unroll
            for (int c = 0; c < 2 * PAIRS; ++c) {
                const i32 column = first_column + 2 * (x + 16 * (c / 2)) + c % 2;
                if (column < p.head_dim) store_value(p.out, p.x_type, out + column, o[i][c] * inverse);
            }
        } else {
            f32* const to = partial_row(p, unit, part, row, TILE_Q);
#pragma unroll
            for (int c = 0; c < 2 * PAIRS; ++c) {
                const i32 column = 2 * (x + 16 * (c / 2)) + c % 2;
                if (column < p.head_dim) to[column] = o[i][c];
            }
            if (x == 0) to[p.head_dim] = most[i], to[p.head_dim + 1] = total;
        }
    }
    if (parts == 1 || !comes_last(p.counters + unit, parts, reinterpret_cast<u32*>(smem))) return;
    for (i32 i = thread; i < (last_row - first_row + 1) * p.head_dim; i += 256) {
        const i32 row = i / p.head_dim;
        const i32 column = i - row * p.head_dim;
        const f32 value = combine_parts(p, unit, parts, row, TILE_Q, column);
        store_value(p.out, p.x_type, out_place(p, s, head, first_row + row) + column, value);
    }
}
