// out[i, j] = act(sum_k x[i / share, k] w[ids[i] n + j, k]), gated by the upper half of an expert's rows if GATED
//
// x: [choices / share, k]   w: rows of any format, see `weight.cuh`   ids: i32 [choices]   out: [choices, n_out]
//
// A launch serves one part of the matrix, rows `first..first + rows` of the whole: it writes the columns whose rows fall into the
// part, and no others. A warp makes one column of one choice; its lanes lie along k, neighbours on neighbouring weights.
#include "cuda/include/weight.cuh"
#include "ops/matmul/epilogue.cuh"

struct Params {
    Weight w;
    const void* x;
    const i32* ids;
    void* out;
    i64 x_stride;
    i64 out_stride;
    u32 x_type;
    u32 out_type;
    u32 share;
    u32 experts;
    u32 n;
    u32 n_out;
    u32 k;
    u32 first;
    u32 rows;
    u32 act;
};
constexpr u32 WARPS = 4;

// The product of a row of this part.
DEVICE f32 product(const Params& p, u32 choice, u32 row) {
    f32 sum = 0.0f;
    const i64 from = choice / p.share * p.x_stride;
    for (u32 i = threadIdx.x % 32; i < p.k; i += 32)
        sum = fmaf(load_value(p.x, p.x_type, from + i), weight_at(p.w, static_cast<i32>(row), static_cast<i32>(i)), sum);
    return warp_sum(sum);
}

KERNEL(32 * WARPS, 4)(const __grid_constant__ Params p) {
    const u32 blocks = (p.n_out + WARPS - 1) / WARPS;
    const u32 choice = blockIdx.x / blocks;
    const u32 col = blockIdx.x % blocks * WARPS + threadIdx.x / 32;
    grid_wait();
    // Negative ids become numbers beyond every expert, rows before the part numbers beyond it.
    const u32 id = static_cast<u32>(p.ids[choice]);
    const u32 row = id * p.n + col - p.first;
    if (id >= p.experts || col >= p.n_out || row >= p.rows) return;
    f32 value = activate(product(p, choice, row), p.act);
    if (GATED) value *= product(p, choice, row + p.n_out);
    if (threadIdx.x % 32 == 0) store_value(p.out, p.out_type, choice * p.out_stride + col, value);
}
