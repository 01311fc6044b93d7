// x as `quant_mma.cu` takes it: in the type T of tensor cores, in the order of `quant.cuh`, zeros past its end.
//
// x: [rows, k] f32, bf16 or f16   out: T, tiles of 8 * NT rows
//
// A thread writes the 16 bytes of one lane, for each of PARTS summands.
#include "ops/matmul/quant.cuh"
#include "ops/matmul/quant_x.cuh"

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
    f32 v[8];
    load_eight(v, p, row, col);
    uint4* const to = static_cast<uint4*>(p.out) + static_cast<i64>(at) * (X_BYTES / 16) + (q * NT + eight) * 32 + lane;
#pragma unroll
    for (i32 part = 0; part < PARTS; ++part) {
        u32 words[4];
        take_summand<T, BITS, PARTS>(words, v, part);
        to[part * STEP_EIGHTS * NT * 32] = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
