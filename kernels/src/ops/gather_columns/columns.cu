// out[i, j] = x[i, columns[j]]
//
// x: [rows, k] of type X   columns: i32 [n]   out: [rows, n] of type X
//
// A block copies a stretch of one row. Columns that are not there become the last.
#include "cuda/include/ptx.cuh"

struct Params {
    const X* x;
    const i32* columns;
    X* out;
    u64 x_stride;
    u64 out_stride;
    u32 k;
    u32 n;
    u32 part;
    u32 pad;
};

KERNEL(128, 8)(const __grid_constant__ Params p) {
    const u32 parts = (p.n + p.part - 1) / p.part;
    const u32 row = blockIdx.x / parts;
    const u32 first = blockIdx.x % parts * p.part, end = min_of(first + p.part, p.n);
    grid_wait();
    const X* const from = p.x + row * p.x_stride;
    X* const to = p.out + row * p.out_stride;
    for (u32 j = first + threadIdx.x; j < end; j += blockDim.x)
        to[j] = from[min_of(static_cast<u32>(p.columns[j]), p.k - 1)];
}
