// x as `quant_wgmma.cu` takes it: in the type T of tensor cores, in the order of its weights along k, zeros past its end.
//
// x: [rows, k] f32, bf16 or f16   out: T [PARTS, rows, 128 * steps]
//
// A thread has eight columns: those that lane t of four decodes at once. They become four pairs of each 32 columns of `out`: the
// elements that fragments of 16 along k take from lane t, see `quant_wgmma.cuh`.
#include "ops/matmul/quant_wgmma.cuh"
#include "ops/matmul/quant_x.cuh"
#include "quant/codes.cuh"

KERNEL(128, 4)(const __grid_constant__ Params p) {
    // Sixteen threads have a step of a row.
    const i32 at = static_cast<i32>(blockIdx.x) * 128 + static_cast<i32>(threadIdx.x);
    const i32 t = at % 4, q = at / 4 % 2, half = at / 8 % 2, place = at / 16;
    const i32 row = place / p.steps, step = place % p.steps;
    if (row >= p.rows) return;
    const i32 col = step * STEP + half * 64 + eight_column(q, t);
    grid_wait();
    f32 v[8];
    load_eight(v, p, row, col);
    u32* const to = static_cast<u32*>(p.out) + static_cast<i64>(place) * (STEP / 2) + half * 32 + q * 16 + t;
#pragma unroll
    for (i32 part = 0; part < PARTS; ++part) {
        u32 words[4];
        take_summand<T, BITS, PARTS>(words, v, part);
#pragma unroll
        for (i32 pair = 0; pair < 4; ++pair)
            to[static_cast<i64>(part) * p.rows * p.steps * (STEP / 2) + pair * 4] = words[pair];
    }
}
