// x as `quant_mma.cu` takes it: in the type T of tensor cores, in the order of `quant.cuh`, zeros past its end.
//
// x: [rows, k] f32, bf16 or f16   out: T, tiles of 8 * NT rows
//
// A thread writes the 16 bytes of one lane, for each of PARTS summands.
#include "cuda/include/values.cuh"
#include "ops/matmul/quant.cuh"

struct Params {
    const void* x;
    uint4* out;
    i64 x_stride;
    i32 rows;
    i32 k;
    i32 steps;
    i32 tiles;
    u32 x_type;
    u32 x_aligned; // whether each row of x begins at a multiple of 16 bytes
};

KERNEL(128, 4)(const __grid_constant__ Params p) {
    const i32 lane = static_cast<i32>(threadIdx.x) % 32;
    // 512 bytes of a warp: rows in eights fastest, then columns, steps, tiles.
    i32 at = static_cast<i32>(blockIdx.x) * 4 + static_cast<i32>(threadIdx.x) / 32;
    if (at >= p.tiles * p.steps * STEP_EIGHTS * NT) return;
    const i32 eight = at % NT;
    at /= NT;
    const i32 q = at % STEP_EIGHTS;
    at /= STEP_EIGHTS;
    const i32 row = (at / p.steps * NT + eight) * 8 + lane / 4;
    const i32 col = at % p.steps * SPAN + eight_column(q, lane % 4);
    grid_wait();
    f32 v[8] = {};
    if (row < p.rows && col < p.k) {
        const i64 from = row * p.x_stride + col;
        if (p.x_aligned != 0 && col + 8 <= p.k) {
            load_group(v, p.x, p.x_type, from);
        } else {
            load_some(v, p.x, p.x_type, from, p.k - col);
        }
    }
    uint4* const to = p.out + static_cast<i64>(at) * (X_BYTES / 16) + (q * NT + eight) * 32 + lane;
#pragma unroll
    for (i32 part = 0; part < PARTS; ++part) {
        u32 words[4];
        take_summand<T, BITS, PARTS>(words, v, part);
        to[part * STEP_EIGHTS * NT * 32] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    grid_release();
}
