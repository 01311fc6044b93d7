// out[m, n] = sum_k patch[m, k] * w[n, k] + bias[n] + pos[id(m), n], in f32
//
// pixels: u8 [images, height, width, 3] or f32 [images, 3, height, width], type PIXEL   w: [N, K], K = 3 * patch^2, channel
// outermost, then row   bias: [N] or null   pos: see patches.cuh   out: [M, N], M patches   types of floats are parameters
//
// A matrix product whose left side does not exist: patch[m, k] is read from the pixels where a tile of it is staged, and
// bytes are normalized there, (level - mean[c]) / std[c]. Element k of any patch lies at the same distance from the
// patch's corner, so a thread stages one k of many patches: the division of k into channel, row and column is done once a
// step, and neighbouring threads read neighbouring pixels. Corners are worked out once a block.
//
// Tiling: a block of 128 threads makes a TILE x TILE tile of the result, TILE = 64, in steps of DEPTH = 16 along k. A thread
// holds 8 x 4 results: three loads of 16 bytes from shared memory feed 32 multiply-adds. Staged lines of PITCH = TILE + 4 floats
// keep them aligned. While a step is multiplied, the elements of the next come to registers.
//
// Rows and columns beyond the result are computed from the last real ones and not stored. The launch serves one part of a
// stacked w: N, bias, pos and out are then those of the part. Any sizes, places and strides; the fast kernel for weights of 16
// bits is mma.cu.
#include "ops/patch_embed/patches.cuh"
#include "cuda/include/weight.cuh"

struct Params {
    const PIXEL* pixels;
    Weight w;
    const void* bias;
    Positions positions;
    void* out;
    u64 out_stride;
    Pictures pictures;
    u32 n;
    u32 k;
    u32 bias_type;
    u32 out_type;
    f32 mean[3];
    // 1 / std.
    f32 scale[3];
};

constexpr u32 SIZE = 128;
constexpr u32 TILE = 64;
constexpr u32 DEPTH = 16;
constexpr u32 PITCH = TILE + 4;
// Elements of a step that a thread stages of each side, every LINES-th row.
constexpr u32 LINES = SIZE / DEPTH;
constexpr u32 STAGED = TILE / LINES;

struct Memory {
    f32 patches[DEPTH * PITCH];
    f32 filters[DEPTH * PITCH];
    u64 corners[TILE];
};

struct Elements {
    f32 patches[STAGED];
    f32 filters[STAGED];

    // Column k of the tile from patch m0 and filter n0 on: the rows of this thread.
    DEVICE void load(const Params& p, const Memory& m, u32 n0, u32 k) {
        const u32 line = threadIdx.x / DEPTH;
        if (k >= p.k) {
#pragma unroll
            for (u32 i = 0; i < STAGED; ++i) patches[i] = filters[i] = 0.0f;
            return;
        }
        const u32 x = k % p.pictures.patch;
        const u32 y = k / p.pictures.patch % p.pictures.patch;
        const u32 c = k / p.pictures.patch / p.pictures.patch;
        const PIXEL* from = p.pixels + distance_of<PIXEL>(p.pictures, c, y, x);
        const f32 mean = c == 0 ? p.mean[0] : c == 1 ? p.mean[1] : p.mean[2];
        const f32 scale = c == 0 ? p.scale[0] : c == 1 ? p.scale[1] : p.scale[2];
#pragma unroll
        for (u32 i = 0; i < STAGED; ++i) {
            const PIXEL pixel = from[m.corners[line + i * LINES]];
            patches[i] = static_cast<f32>(pixel);
            if constexpr (!planar<PIXEL>()) patches[i] = (patches[i] - mean) * scale;
            filters[i] = weight_at(p.w, min_of(n0 + line + i * LINES, p.n - 1), k);
        }
    }
    DEVICE void stage(Memory& m) const {
        const u32 at = threadIdx.x % DEPTH * PITCH + threadIdx.x / DEPTH;
#pragma unroll
        for (u32 i = 0; i < STAGED; ++i) {
            m.patches[at + i * LINES] = patches[i];
            m.filters[at + i * LINES] = filters[i];
        }
    }
};

KERNEL(128, 4)(const __grid_constant__ Params p) {
    SHARED_MEMORY(smem);
    Memory& m = *reinterpret_cast<Memory*>(smem);
    const u32 n0 = blockIdx.x * TILE;
    const u32 m0 = blockIdx.y * TILE;
    grid_wait();
    if (threadIdx.x < TILE) {
        m.corners[threadIdx.x] = corner_of<PIXEL>(p.pictures, min_of(m0 + threadIdx.x, p.pictures.patches - 1));
    }
    __syncthreads();

    const u32 row = threadIdx.x / 16 * 8;
    const u32 col = threadIdx.x % 16 * 4;
    const u32 depth = threadIdx.x % DEPTH;
    f32 sums[8][4];
#pragma unroll
    for (u32 i = 0; i < 8; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    Elements next;
    next.load(p, m, n0, depth);
    for (u32 k0 = 0; k0 < p.k; k0 += DEPTH) {
        next.stage(m);
        __syncthreads();
        if (k0 + DEPTH < p.k) next.load(p, m, n0, k0 + DEPTH + depth);
#pragma unroll
        for (u32 line = 0; line < DEPTH * PITCH; line += PITCH) {
            const float4 a0 = *reinterpret_cast<const float4*>(m.patches + line + row);
            const float4 a1 = *reinterpret_cast<const float4*>(m.patches + line + row + 4);
            const float4 b = *reinterpret_cast<const float4*>(m.filters + line + col);
            const f32 a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                sums[i][0] = fmaf(a[i], b.x, sums[i][0]);
                sums[i][1] = fmaf(a[i], b.y, sums[i][1]);
                sums[i][2] = fmaf(a[i], b.z, sums[i][2]);
                sums[i][3] = fmaf(a[i], b.w, sums[i][3]);
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        const u32 patch = m0 + row + i;
        if (patch >= p.pictures.patches) return;
        const u64 pos = p.positions.first(p.pictures, patch);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 n = n0 + col + j;
            if (n >= p.n) break;
            f32 value = sums[i][j];
            if (p.bias) value += load_value(p.bias, p.bias_type, n);
            if (p.positions.rows) value += load_value(p.positions.rows, p.positions.type, pos + n);
            store_value(p.out, p.out_type, patch * p.out_stride + n, value);
        }
    }
}
