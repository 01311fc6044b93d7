// out[y, x, n] = bias[n] + sum of weight[t, n] * in[y * stride + ty - padding, x * stride + tx - padding, n / multiplier]
//
// x: [pictures * rows * cols, channels] of type X   weight: f32 [height * width, wide]   bias: f32 [wide] or null
// out: [pictures * down * across, wide] of type OUT
//
// A thread makes one channel of one place: a warp reads neighbouring channels of an input row, and neighbouring places read
// mostly the same rows, which the caches hold. Taps beyond the edges are left out.
#include "cuda/include/math.cuh"
#include "cuda/include/ptx.cuh"

struct Params {
    const X* x;
    const f32* weight;
    const f32* bias;
    OUT* out;
    u64 x_stride;
    u64 out_stride;
    u32 rows;
    u32 cols;
    u32 down;
    u32 across;
    u32 height;
    u32 width;
    u32 stride;
    u32 padding;
    u32 weight_stride;
    u32 wide;
    u32 multiplier;
    u32 places;
};

KERNEL(128, 8)(const __grid_constant__ Params p) {
    grid_wait();
    const u32 chunks = (p.wide + 127) / 128;
    const u32 place = blockIdx.x / chunks;
    const u32 col = blockIdx.x % chunks * 128 + threadIdx.x;
    if (col >= p.wide) return;
    const u32 picture = place / (p.down * p.across);
    const u32 y = place / p.across % p.down * p.stride;
    const u32 left = place % p.across * p.stride;
    f32 sum = p.bias ? p.bias[col] : 0.0f;
    for (u32 ty = 0; ty < p.height; ++ty) {
        // Rows above the picture wrap to numbers that no picture has.
        const u32 row = y + ty - p.padding;
        if (row >= p.rows) continue;
        for (u32 tx = 0; tx < p.width; ++tx) {
            const u32 at = left + tx - p.padding;
            if (at >= p.cols) continue;
            const u64 from = static_cast<u64>(picture * p.rows + row) * p.cols + at;
            const f32 value = to_f32(p.x[from * p.x_stride + col / p.multiplier]);
            sum = fmaf(p.weight[(ty * p.width + tx) * p.weight_stride + col], value, sum);
        }
    }
    p.out[place * p.out_stride + col] = from_f32<OUT>(sum);
}
