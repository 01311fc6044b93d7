// Rounds x [rows, k] of any float type to bf16, for products on tensor cores.
//
// A thread rounds eight neighbours of a row: it reads 16 or 32 bytes where x is `aligned`, and writes 16. Rows of the result begin at
// multiples of 16 bytes; what lies between them becomes zeros.
//
// SASS: LDG.E.128 STG.E.128
#include "cuda/include/values.cuh"

struct Params {
    const void* x;
    u16* out;
    i64 x_stride;
    i64 out_stride;
    i32 rows;
    i32 k;
    u32 x_type;
    u32 aligned; // whether each row of x begins at a multiple of 16 bytes
};

constexpr i32 THREADS = 128;
constexpr i32 SPAN = 8;

KERNEL(THREADS, 1)(const __grid_constant__ Params p) {
    const i32 spans = ceil_div(p.k, SPAN); // of a row
    const i64 index = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
    const i32 row = static_cast<i32>(index / spans), col = static_cast<i32>(index % spans) * SPAN;
    grid_wait();
    if (row < p.rows) {
        f32 v[SPAN];
        load_columns(v, p.x, p.x_type, p.aligned != 0, row * p.x_stride, col, p.k);
        store_group(p.out, VALUE_BF16, row * p.out_stride + col, v);
    }
}
