// out[m, n] = sum_k (level[m, k] - mean[c]) / std[c] * w[n, k] + bias[n] + pos[id(m), n], on tensor cores
//
// pixels: u8 [images, height, width, 3]   w: [N, K] of type W, bf16 or f16, K = 3 * PATCH^2, channel c outermost, then row
// shift: f32 [N], of shift.cu   pos: see patches.cuh   out: [M, N] of type OUT, M patches
//
// Grey levels are integers below 256, which W holds exactly, whereas normalized pixels would be rounded. So the levels
// themselves are multiplied, and the normalization is taken out of the sum:
//
//   sum_c (sum_i level * w) / std[c] - sum_c mean[c] / std[c] * (sum_i w)
//
// The second sum does not depend on the picture and is in `shift`, with the bias. For the first, channels are multiplied one
// after another, and between two of them all sums are multiplied by std[c + 1] / std[c], at the end by 1 / std[2].
//
// The left side does not exist in memory: a pair of neighbouring k of a patch are two bytes that lie at the same distance from
// the corner in all patches. In a step of DEPTH = 32 along k half a warp reads the pairs of one patch, 8 warps those of all
// patches of the tile. The bytes for the next step are under way to registers while tensor cores work; then they become
// pairs of W in shared memory, one of two buffers. Filters come by cp.async in a ring of STAGES. A step begins at a multiple of
// 8 along k, that is at 16 bytes: those before and after the channel have zeros on the left side.
//
// Tiling: 8 warps make a tile of 128 patches x 128 filters, each 64 x 32 of it: 32 mma of 16x8x16 a step, from 6 ldmatrix of
// four matrices for each half of the step. Rows of 64 bytes in shared memory are swizzled by parts of 16, so that the eight
// rows of a matrix lie in different banks. Patches and filters beyond the result are computed from the last patch and from
// zeros. Rows of the filters must begin at 16 bytes; PAIRS says whether results may be stored, and position embeddings
// loaded, two at a time.
//
// SASS: HMMA LDSM LDGSTS
#include "cuda/include/vec.cuh"
#include "ops/patch_embed/patches.cuh"

struct Params {
    const u8* pixels;
    const W* w;
    const f32* shift;
    // Of type POS.
    Positions positions;
    OUT* out;
    u64 w_stride;
    u64 out_stride;
    Pictures pictures;
    u32 n;
    // std[1] / std[0], std[2] / std[1], 1 / std[2].
    f32 rescale[3];
};

constexpr u32 AREA = PATCH * PATCH;
constexpr u32 K = 3 * AREA;
constexpr u32 TILE = 128;
constexpr u32 DEPTH = 32;
constexpr u32 STAGES = 4;
// Bytes of a staged tile of either side.
constexpr u32 TILE_BYTES = TILE * DEPTH * 2;
// Steps of all channels.
DEVICE constexpr u32 first_step(u32 c) { return c * AREA / 8 * 8; }
DEVICE constexpr u32 steps_of(u32 c) { return ((c + 1) * AREA - first_step(c) + DEPTH - 1) / DEPTH; }
constexpr u32 STEPS = steps_of(0) + steps_of(1) + steps_of(2);

// A step: its channel and its first k, a multiple of 8.
struct Step {
    u32 c = 0;
    u32 k = 0;

    // Whether the next step is of another channel; moves on to it.
    DEVICE bool advance() {
        k += DEPTH;
        if (k < (c + 1) * AREA) return false;
        c += 1;
        k = first_step(c);
        return true;
    }
};

// Place of element (row, col) of a staged tile, in bytes.
DEVICE u32 place_of(u32 row, u32 col) { return row * 64 + ((col / 8 ^ (row / 2 & 3)) * 16) + col % 8 * 2; }

// Two grey levels as a pair.
template <typename T> DEVICE u32 level_pair(u32 lo, u32 hi);
template <> DEVICE u32 level_pair<bf16>(u32 lo, u32 hi) {
    // 2^23 + level, less 2^23: the upper half of the float is the level.
    const f32 a = __uint_as_float(0x4b000000u | lo) - 8388608.0f;
    const f32 b = __uint_as_float(0x4b000000u | hi) - 8388608.0f;
    return byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632);
}
template <> DEVICE u32 level_pair<f16>(u32 lo, u32 hi) {
    // 1024 + level, times 1, less 1024.
    return fma2<f16>(0x64006400u | lo | hi << 16, 0x3c003c00u, 0xe400e400u);
}

// Distance of a channel's element i from the corner of its patch.
DEVICE u32 tap_of(const Pictures& p, u32 c, u32 i) { return (i / PATCH * p.width + i % PATCH) * 3 + c; }

// The pairs of a step that a thread stages: one of each of 8 patches.
struct Levels {
    u32 lo[8];
    u32 hi[8];

    DEVICE void load(const Params& p, const u32* corners, Step step) {
        const u32 k = step.k + lane_id() % 16 * 2;
        const u32 end = (step.c + 1) * AREA;
        const u32 begin = step.c * AREA;
        const bool has_lo = k >= begin && k < end;
        const bool has_hi = k + 1 >= begin && k + 1 < end;
        const u8* first = p.pixels + tap_of(p.pictures, step.c, has_lo ? k - begin : 0);
        const u8* second = p.pixels + tap_of(p.pictures, step.c, has_hi ? k + 1 - begin : 0);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 corner = corners[threadIdx.x / 16 + i * 16];
            lo[i] = has_lo ? first[corner] : 0;
            hi[i] = has_hi ? second[corner] : 0;
        }
    }
    DEVICE void stage(u8* tile) const {
        const u32 row = threadIdx.x / 16;
        const u32 col = lane_id() % 16 * 2;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            *reinterpret_cast<u32*>(tile + place_of(row + i * 16, col)) = level_pair<W>(lo[i], hi[i]);
        }
    }
};

// Starts the copies of a step's filters, from row n0 on.
DEVICE void copy_filters(const Params& p, u8* tile, u32 n0, u32 k0) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 row = threadIdx.x / 4 + i * 64;
        const u32 col = threadIdx.x % 4 * 8;
        const u32 k = k0 + col;
        const bool real = n0 + row < p.n && k < K;
        const W* from = real ? p.w + (n0 + row) * p.w_stride + k : p.w;
        cp_async_16(tile + place_of(row, col), from, real ? min_of(K - k, 8u) * 2 : 0);
    }
}

// Two neighbours of a row of results, from column n on; those beyond the row are left out.
DEVICE void load_pair(f32 (&to)[2], const POS* row, u32 n, u32 end) {
    if constexpr (PAIRS) {
        if (n < end) load_vec(to, row + n);
    } else {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            if (n + i < end) to[i] = to_f32(row[n + i]);
        }
    }
}
DEVICE void store_pair(OUT* row, const f32 (&from)[2], u32 n, u32 end) {
    if constexpr (PAIRS) {
        if (n < end) store_vec(row + n, from);
    } else {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            if (n + i < end) row[n + i] = from_f32<OUT>(from[i]);
        }
    }
}

KERNEL(256, 2)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    u8* const filters = smem;
    u8* const patches = filters + STAGES * TILE_BYTES;
    u32* const corners = reinterpret_cast<u32*>(patches + 2 * TILE_BYTES);
    const u32 n0 = blockIdx.x * TILE;
    const u32 m0 = blockIdx.y * TILE;
    const u32 lane = lane_id();
    const u32 warp = threadIdx.x / 32;
    grid_wait();

    if (threadIdx.x < TILE) {
        const u32 patch = min_of(m0 + threadIdx.x, p.pictures.patches - 1);
        corners[threadIdx.x] = static_cast<u32>(corner_of<u8>(p.pictures, patch));
    }
    __syncthreads();
    Step of_filters;
#pragma unroll
    for (u32 stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < STEPS) copy_filters(p, filters + stage * TILE_BYTES, n0, of_filters.k);
        cp_async_commit();
        of_filters.advance();
    }
    Step of_levels;
    Levels levels;
    levels.load(p, corners, of_levels);
    levels.stage(patches);

    f32 sums[4][4][4];
#pragma unroll
    for (u32 i = 0; i < 64; ++i) sums[i / 16][i / 4 % 4][i % 4] = 0.0f;
    const u32 row0 = warp / 4 * 64;
    const u32 col0 = warp % 4 * 32;

    for (u32 step = 0; step < STEPS; ++step) {
        const u32 c = of_levels.c;
        const bool ends_channel = of_levels.advance();
        if (step + 1 < STEPS) levels.load(p, corners, of_levels);
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        const u32 ahead = step + STAGES - 1;
        if (ahead < STEPS) copy_filters(p, filters + ahead % STAGES * TILE_BYTES, n0, of_filters.k);
        cp_async_commit();
        of_filters.advance();

        const u8* const a_tile = patches + step % 2 * TILE_BYTES;
        const u8* const b_tile = filters + step % STAGES * TILE_BYTES;
#pragma unroll
        for (u32 half = 0; half < DEPTH; half += 16) {
            u32 a[4][4];
            u32 b[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                ldmatrix_x4(a[i], a_tile + place_of(row0 + i * 16 + lane % 16, half + lane / 16 * 8));
            }
            // Matrices 0 and 1 are both halves along k of eight filters, 2 and 3 of the next eight.
#pragma unroll
            for (u32 j = 0; j < 2; ++j) {
                const u32 filter = col0 + j * 16 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(b[j], b_tile + place_of(filter, half + lane / 8 % 2 * 8));
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    mma_16816<W>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
        if (step + 1 < STEPS) levels.stage(patches + (step + 1) % 2 * TILE_BYTES);
        if (ends_channel) {
            const f32 rescale = c == 0 ? p.rescale[0] : c == 1 ? p.rescale[1] : p.rescale[2];
#pragma unroll
            for (u32 i = 0; i < 64; ++i) sums[i / 16][i / 4 % 4][i % 4] *= rescale;
        }
    }

    const u32 n = n0 + col0 + lane % 4 * 2;
    const POS* positions = static_cast<const POS*>(p.positions.rows);
    f32 shift[4][2];
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
        const u32 col = n + j / 2 * 8 + j % 2;
        shift[j / 2][j % 2] = col < p.n ? p.shift[col] : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        const u32 patch = m0 + row0 + i * 8 + lane / 4;
        if (patch >= p.pictures.patches) break;
        const u64 pos = p.positions.first(p.pictures, patch);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            f32 pair[2] = {0.0f, 0.0f};
            if (positions) load_pair(pair, positions + pos, n + j * 8, p.n);
#pragma unroll
            for (u32 e = 0; e < 2; ++e) pair[e] += sums[i / 2][j][i % 2 * 2 + e] + shift[j][e];
            store_pair(p.out + patch * p.out_stride, pair, n + j * 8, p.n);
        }
    }
}
