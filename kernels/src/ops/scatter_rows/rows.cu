// out[rows[i]] = src[i]
//
// src: [count, d] of type X   rows: i32 [count]   out: [limit, d] of type OUT, written in part
//
// A block copies a stretch of one row, so that few long rows, as in decoding, still make several blocks. Rows whose number is
// negative or beyond `out` are left out.
#include "cuda/include/ptx.cuh"

struct Params {
    const X* src;
    const i32* rows;
    OUT* out;
    u64 src_stride;
    u64 out_stride;
    u32 count;
    u32 d;
    u32 limit;
    u32 columns;
};

KERNEL(128, 8)(const __grid_constant__ Params p) {
    const u32 chunks = (p.d + p.columns - 1) / p.columns;
    const u32 i = blockIdx.x / chunks;
    grid_wait();
    const i32 row = p.rows[i];
    if (row < 0 || static_cast<u32>(row) >= p.limit) return;
    const X* from = p.src + i * p.src_stride;
    OUT* to = p.out + static_cast<u64>(row) * p.out_stride;
    const u32 first = (blockIdx.x % chunks) * p.columns;
    const u32 end = min_of(first + p.columns, p.d);
    for (u32 col = first + threadIdx.x; col < end; col += blockDim.x) to[col] = from_f32<OUT>(to_f32(from[col]));
}
